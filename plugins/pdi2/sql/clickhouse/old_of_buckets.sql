SELECT team_id, distinct_id, argMax(person_id, latest) AS person
FROM (
    SELECT team_id, distinct_id, person_id, max(_timestamp) AS latest
    FROM person_distinct_id
    WHERE team_id IN {team_ids:Array(Int64)}
      AND has({buckets:Array(Int64)}, bitAnd(reinterpretAsInt64(reverse(substring(MD5(distinct_id), 1, 8))), {mask:Int64}))
    GROUP BY team_id, distinct_id, person_id
    HAVING max(is_deleted) = 0
)
GROUP BY team_id, distinct_id
