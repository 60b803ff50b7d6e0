-- One row if the new table is replicated and has no second replica. It uses no aggregate, because a setting decides
-- what an aggregate over no rows returns.
SELECT replica_name
FROM system.replicas
WHERE database = currentDatabase() AND table = 'person_distinct_id2' AND total_replicas = 1
