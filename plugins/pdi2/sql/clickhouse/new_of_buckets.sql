SELECT team_id, distinct_id, argMax(person_id, version) AS person, argMax(is_deleted, version) AS deleted
FROM person_distinct_id2
WHERE team_id IN {team_ids:Array(Int64)}
  AND has({buckets:Array(Int64)}, bitAnd(reinterpretAsInt64(reverse(substring(MD5(distinct_id), 1, 8))), {mask:Int64}))
GROUP BY team_id, distinct_id
HAVING deleted = 0
