-- Finishes teams that were copied by shared statements: each gets one slice, and a share of the time by its rows.
WITH finished AS (
    INSERT INTO pdi2_migration.slice (team_id, lower, upper, rows_copied, seconds, peak_memory)
    SELECT team_id, '', NULL, rows_copied, %(seconds)s * (rows_copied + 1) / sum(rows_copied + 1) OVER (), %(peak_memory)s
    FROM jsonb_to_recordset(%(teams)s) AS copied (team_id bigint, rows_copied bigint)
    RETURNING *
)
UPDATE pdi2_migration.team
SET status = 'copied',
    copied_at = clock_timestamp(),
    rows_copied = finished.rows_copied,
    slices_done = 1,
    copy_seconds = team.copy_seconds + finished.seconds,
    peak_memory = greatest(team.peak_memory, finished.peak_memory)
FROM finished
WHERE team.team_id = finished.team_id
