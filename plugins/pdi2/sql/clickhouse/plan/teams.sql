-- The teams of both tables, with their rows in the old one.
SELECT team_id, sum(old_rows) AS rows_source
FROM (
    SELECT team_id, count() AS old_rows FROM person_distinct_id GROUP BY team_id
    UNION ALL
    SELECT team_id, 0 AS old_rows FROM person_distinct_id2 GROUP BY team_id
)
GROUP BY team_id
