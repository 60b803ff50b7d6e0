-- The application's read of the new table. It returns a count, so that only the reading takes time.
SELECT count()
FROM (
    SELECT distinct_id, argMax(person_id, version) AS person
    FROM person_distinct_id2
    WHERE /* include slice_range */
    GROUP BY distinct_id
    HAVING argMax(is_deleted, version) = 0
)
