SELECT name, engine, sorting_key, total_rows, total_bytes
FROM system.tables
WHERE database = currentDatabase() AND name IN ('person_distinct_id', 'person_distinct_id2')
