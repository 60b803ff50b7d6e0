SELECT toUInt64(sum(rows)), toUInt64(sum(bytes_on_disk))
FROM system.parts
WHERE active AND database = currentDatabase() AND table = 'person_distinct_id'
