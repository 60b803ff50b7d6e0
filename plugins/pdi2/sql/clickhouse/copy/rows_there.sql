SELECT count()
FROM person_distinct_id2
WHERE /* include slice_range */
