-- What the replica we are connected to knows about itself and, through Keeper, about the others.
SELECT table, zookeeper_path, replica_name, is_readonly, is_session_expired, active_replicas, total_replicas,
       mapKeys(mapFilter((name, active) -> active, replica_is_active)) AS there,
       mapKeys(mapFilter((name, active) -> NOT active, replica_is_active)) AS away,
       absolute_delay, queue_size, last_queue_update_exception, zookeeper_exception
FROM system.replicas
WHERE database = currentDatabase() AND table IN ('person_distinct_id', 'person_distinct_id2')
ORDER BY table
