SELECT distinct_id, argMax(person_id, latest) AS person
FROM (
    SELECT distinct_id, person_id, max(_timestamp) AS latest
    FROM person_distinct_id
    WHERE team_id = {team_id:Int64} AND distinct_id IN (SELECT unhex(arrayJoin({distinct_ids:Array(String)})))
    GROUP BY distinct_id, person_id
    HAVING max(is_deleted) = 0
)
GROUP BY distinct_id
