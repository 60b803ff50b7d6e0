-- 1 where the new table is replicated and no second replica is registered.
SELECT count()
FROM system.replicas
WHERE database = currentDatabase() AND table = 'person_distinct_id2' AND total_replicas = 1
