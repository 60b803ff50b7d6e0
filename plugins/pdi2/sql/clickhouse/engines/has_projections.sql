SELECT count()
FROM system.tables
WHERE database = currentDatabase() AND name = 'person_distinct_id2'
  AND match(create_table_query, '\\sPROJECTION\\s')
