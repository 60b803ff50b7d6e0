SELECT team_id, count()
FROM person_distinct_id2
WHERE team_id IN {team_ids:Array(Int64)}
GROUP BY team_id
