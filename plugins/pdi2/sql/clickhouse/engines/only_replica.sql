-- A row where the new table is replicated and no second replica is registered. No aggregate, because what one says of
-- nothing is a setting.
SELECT replica_name
FROM system.replicas
WHERE database = currentDatabase() AND table = 'person_distinct_id2' AND total_replicas = 1
