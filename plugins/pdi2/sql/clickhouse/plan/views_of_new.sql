SELECT arrayStringConcat(arrayMap((database, view) -> concat(database, '.', view), dependencies_database, dependencies_table), ', ')
FROM system.tables
WHERE database = currentDatabase() AND name = 'person_distinct_id2' AND notEmpty(dependencies_table)
