SELECT team_id, distinct_id, argMax(person_id, latest) AS person
FROM (
    SELECT team_id, distinct_id, person_id, max(_timestamp) AS latest
    FROM person_distinct_id
    WHERE /* include keys */
    GROUP BY team_id, distinct_id, person_id
    HAVING max(is_deleted) = 0
)
GROUP BY team_id, distinct_id
