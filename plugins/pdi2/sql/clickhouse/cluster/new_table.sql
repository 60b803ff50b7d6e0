-- Which table the new one is. Its UUID changes by EXCHANGE TABLES or RESTORE; CREATE ... ON CLUSTER may give several
-- servers the same.
SELECT uuid, serverUUID(), engine LIKE 'Replicated%' AS is_replicated
FROM system.tables
WHERE database = currentDatabase() AND name = 'person_distinct_id2'
