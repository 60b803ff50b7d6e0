SELECT count()
FROM person_distinct_id
WHERE /* include slice_range */
