-- For how many of a team's sampled ids PostHog's readers of the old and the new table see different persons, or only
-- one of them sees a person. A hash of 128 bits stands for the id.
SELECT team_id, uniqExact(id_hash)
FROM (
    SELECT team_id, id_hash, person
    FROM (
        SELECT team_id, id_hash, argMax(person_id, latest) AS person
        FROM (
            SELECT team_id, sipHash128(distinct_id) AS id_hash, person_id, max(_timestamp) AS latest
            FROM person_distinct_id
            WHERE /* include slice_range */
              AND cityHash64(distinct_id) % {one_of:UInt64} = 0
            GROUP BY team_id, id_hash, person_id
            HAVING max(is_deleted) = 0
        )
        GROUP BY team_id, id_hash
        UNION ALL
        SELECT team_id, sipHash128(distinct_id) AS id_hash, argMax(person_id, version) AS person
        FROM person_distinct_id2
        WHERE /* include slice_range */
          AND cityHash64(distinct_id) % {one_of:UInt64} = 0
        GROUP BY team_id, id_hash
        HAVING argMax(is_deleted, version) = 0
    )
    GROUP BY team_id, id_hash, person
    HAVING count() = 1
)
GROUP BY team_id
