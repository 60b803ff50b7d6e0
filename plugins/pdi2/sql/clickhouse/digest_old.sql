-- What a reader of the old table sees, a row a bucket: PostHog's own expression, merges and all.
SELECT team_id,
       bitAnd(reinterpretAsInt64(reverse(substring(MD5(distinct_id), 1, 8))), {mask:Int64}) AS bucket,
       count(),
       toString(sum(toInt128(reinterpretAsInt64(reverse(substring(MD5(concat(toString(person), distinct_id)), 1, 8))))))
FROM (
    SELECT team_id, distinct_id, argMax(person_id, latest) AS person
    FROM (
        SELECT team_id, distinct_id, person_id, max(_timestamp) AS latest
        FROM person_distinct_id
        WHERE /* include slice_range */
        GROUP BY team_id, distinct_id, person_id
        HAVING max(is_deleted) = 0
    )
    GROUP BY team_id, distinct_id
)
GROUP BY team_id, bucket
