SELECT team_id, count() AS rows_new
FROM person_distinct_id2
GROUP BY team_id
