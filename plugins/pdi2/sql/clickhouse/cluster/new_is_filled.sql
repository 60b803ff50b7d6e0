SELECT count() > 0
FROM person_distinct_id2
