SELECT distinct_id, argMax(person_id, version) AS person_id
FROM person_distinct_id2
WHERE team_id = {team_id:Int64}
GROUP BY distinct_id
HAVING argMax(is_deleted, version) = 0
