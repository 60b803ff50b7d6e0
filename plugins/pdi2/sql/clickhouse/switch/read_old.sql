-- The application's read of the old table. It returns a count, so that only the reading takes time.
SELECT count()
FROM (
    SELECT distinct_id, argMax(person_id, latest) AS person
    FROM (
        SELECT distinct_id, person_id, max(_timestamp) AS latest
        FROM person_distinct_id
        WHERE /* include slice_range */
        GROUP BY distinct_id, person_id
        HAVING max(is_deleted) = 0
    )
    GROUP BY distinct_id
)
