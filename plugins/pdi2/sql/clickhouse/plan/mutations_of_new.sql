-- Ours name each row in full (row_name.sql), in up to 300 KB, or nothing (reach_every_replica.sql).
SELECT mutation_id, substringUTF8(command, 1, 1000) AS told, parts_to_do, latest_fail_reason,
       toUnixTimestamp(create_time) AS began, is_done,
       position(command, 'sipHash128(team_id, distinct_id, person_id, is_deleted, version') > 0
       OR command IN ('DELETE WHERE 0', '(DELETE WHERE 0)') AS is_ours
FROM system.mutations
WHERE database = currentDatabase() AND table = 'person_distinct_id2'
ORDER BY create_time, mutation_id
