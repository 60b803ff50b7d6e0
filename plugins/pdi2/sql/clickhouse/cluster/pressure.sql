-- What shows a busy server: parts that wait for merges, replicas that lag or are away, memory in use.
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
       (SELECT max(absolute_delay)
        FROM system.replicas
        WHERE database = currentDatabase() AND table IN ('person_distinct_id', 'person_distinct_id2')) AS lag,
       (SELECT maxOrNull(active_replicas)
        FROM system.replicas
        WHERE database = currentDatabase() AND table = 'person_distinct_id2') AS active,
       (SELECT maxOrNull(total_replicas)
        FROM system.replicas
        WHERE database = currentDatabase() AND table = 'person_distinct_id2') AS total,
       (SELECT any(arrayStringConcat(mapKeys(mapFilter((name, active) -> NOT active, replica_is_active)), ', '))
        FROM system.replicas
        WHERE database = currentDatabase() AND table = 'person_distinct_id2') AS away,
       (SELECT value FROM system.metrics WHERE metric = 'MemoryTracking') AS memory
