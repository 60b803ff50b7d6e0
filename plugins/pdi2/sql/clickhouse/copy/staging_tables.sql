SELECT name
FROM system.tables
WHERE database = currentDatabase() AND match(name, '^person_distinct_id2_staging_(minus_)?[0-9]+(_[a-z]+)?$')
