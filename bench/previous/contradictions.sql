-- Rows of one id and one version that say different things: a digest sees one of them by chance.
SELECT DISTINCT team_id, distinct_id
FROM (
    SELECT team_id, distinct_id
    FROM person_distinct_id2
    WHERE team_id IN {team_ids:Array(Int64)}
      AND ({from_the_start:Bool} OR distinct_id >= unhex({lower:String}))
      AND ({to_the_end:Bool} OR distinct_id < unhex({upper:String}))
    GROUP BY team_id, distinct_id, version
    HAVING min(person_id) <> max(person_id) OR min(is_deleted) <> max(is_deleted)
)
