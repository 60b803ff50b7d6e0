-- For how many ids of each team PostHog's readers of the old and the new table see different persons, or only one of
-- them sees a person. A hash of 128 bits stands for the id.
SELECT team_id, uniqExact(id_hash)
FROM (
    SELECT team_id, id_hash, person
    FROM (
        SELECT team_id, id_hash, argMax(person_id, latest) AS person
        FROM (
            SELECT team_id, sipHash128(distinct_id) AS id_hash, person_id, max(_timestamp) AS latest
            FROM person_distinct_id
            WHERE team_id IN {team_ids:Array(Int64)}
      AND ({from_the_start:Bool} OR distinct_id >= unhex({lower:String}))
      AND ({to_the_end:Bool} OR distinct_id < unhex({upper:String}))
            GROUP BY team_id, id_hash, person_id
            HAVING max(is_deleted) = 0
        )
        GROUP BY team_id, id_hash
        UNION ALL
        SELECT team_id, sipHash128(distinct_id) AS id_hash, argMax(person_id, version) AS person
        FROM person_distinct_id2
        WHERE team_id IN {team_ids:Array(Int64)}
      AND ({from_the_start:Bool} OR distinct_id >= unhex({lower:String}))
      AND ({to_the_end:Bool} OR distinct_id < unhex({upper:String}))
        GROUP BY team_id, id_hash
        HAVING argMax(is_deleted, version) = 0
    )
    GROUP BY team_id, id_hash, person
    HAVING count() = 1
)
GROUP BY team_id
