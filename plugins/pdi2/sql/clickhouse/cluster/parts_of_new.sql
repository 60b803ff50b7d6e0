SELECT name
FROM system.parts
WHERE active AND database = currentDatabase() AND table = 'person_distinct_id2'
