SELECT table, name
FROM system.columns
WHERE database = currentDatabase() AND comment = 'skip_0003_fill_person_distinct_id2'
