SELECT name
FROM system.tables
WHERE database = currentDatabase() AND startsWith(name, 'person_distinct_id2_staging_')
