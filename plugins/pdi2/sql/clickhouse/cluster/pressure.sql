-- What shows a busy server: parts that wait for merges, replicas that lag or are away, memory in use, full disks.
-- The server's memory limit is 0 if it has none, or if ClickHouse is older than 23.2 and does not tell.
SELECT (SELECT max(parts) FROM (
            SELECT count() AS parts
            FROM system.parts
            WHERE active AND database = currentDatabase() AND table = 'person_distinct_id2'
            GROUP BY partition_id
        )) AS parts,
       (SELECT toUInt64OrZero(coalesce(
            nullIf((SELECT extract(engine_full, 'parts_to_delay_insert = (\\d+)')
                    FROM system.tables
                    WHERE database = currentDatabase() AND name = 'person_distinct_id2'), ''),
            value))
        FROM system.merge_tree_settings
        WHERE name = 'parts_to_delay_insert') AS delayed_at,
       (SELECT (argMax((absolute_delay, table, replica_name), absolute_delay), groupArrayIf(
                    (active_replicas, total_replicas, arrayStringConcat(
                        mapKeys(mapFilter((name, active) -> NOT active, replica_is_active)), ', ')),
                    table = 'person_distinct_id2'))
        FROM system.replicas
        WHERE database = currentDatabase() AND table IN ('person_distinct_id', 'person_distinct_id2')) AS lag_and_replicas,
       (SELECT value FROM system.metrics WHERE metric = 'MemoryTracking') AS memory,
       (SELECT toInt64OrZero(toString(max(value)))
        FROM system.{server_settings:Identifier}
        WHERE name = 'max_server_memory_usage') AS memory_limit,
       (SELECT groupArray((storage_policy, free, total)) FROM (/* include disks_of_new */)) AS disks
