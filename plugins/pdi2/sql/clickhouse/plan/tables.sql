SELECT name, engine, engine_full, sorting_key, create_table_query
FROM system.tables
WHERE database = currentDatabase() AND name IN ('person_distinct_id', 'person_distinct_id2')
