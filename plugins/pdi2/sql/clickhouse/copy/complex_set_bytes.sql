SELECT sum(total_bytes)
FROM system.tables
WHERE database = currentDatabase() AND name = {complex_set:String}
