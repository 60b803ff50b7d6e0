SELECT table, name, type
FROM system.columns
WHERE database = currentDatabase() AND table IN ('person_distinct_id', 'person_distinct_id2')
