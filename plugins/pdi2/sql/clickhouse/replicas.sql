SELECT table, is_readonly, active_replicas, total_replicas
FROM system.replicas
WHERE database = currentDatabase() AND table IN ('person_distinct_id', 'person_distinct_id2')
