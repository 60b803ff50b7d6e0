SELECT mutation_id, command, parts_to_do, latest_fail_reason
FROM system.mutations
WHERE database = currentDatabase() AND table = 'person_distinct_id2' AND NOT is_done
ORDER BY create_time, mutation_id
