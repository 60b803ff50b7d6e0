-- A pair (id and person) counts only if none of its remaining rows unlinks it. Of an id's pairs, the latest wins.
SELECT distinct_id, argMax(person_id, linked_at) AS person_id
FROM
(
    SELECT distinct_id, person_id, max(_timestamp) AS linked_at
    FROM person_distinct_id
    WHERE team_id = {team_id:Int64}
    GROUP BY distinct_id, person_id
    HAVING max(is_deleted) = 0
)
GROUP BY distinct_id
