SELECT rows_copied, seconds, peak_memory, finished_at
FROM pdi2_migration.slice
WHERE team_id = %(team_id)s
ORDER BY finished_at DESC
LIMIT 20
