-- What a reader of the new table sees, one row per bucket. The hash is the first 8 bytes of md5 as a signed integer,
-- as truth_digest.sql of Postgres computes it.
SELECT team_id,
       bitAnd(reinterpretAsInt64(reverse(substring(MD5(distinct_id), 1, 8))), {mask:Int64}) AS bucket,
       count(),
       toString(sum(toInt128(reinterpretAsInt64(reverse(substring(MD5(concat(toString(person), distinct_id)), 1, 8))))))
FROM (
    SELECT team_id, distinct_id, argMax(person_id, version) AS person, argMax(is_deleted, version) AS deleted
    FROM person_distinct_id2
    WHERE team_id IN {team_ids:Array(Int64)}
      AND ({from_the_start:Bool} OR distinct_id >= unhex({lower:String}))
      AND ({to_the_end:Bool} OR distinct_id < unhex({upper:String}))
    GROUP BY team_id, distinct_id
    HAVING deleted = 0
)
GROUP BY team_id, bucket
