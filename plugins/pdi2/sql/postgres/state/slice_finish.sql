-- Slices of different teams, which share the time by their rows.
WITH finished AS (
    INSERT INTO pdi2_migration.slice (team_id, lower, upper, rows_copied, seconds, peak_memory)
    SELECT team_id, lower, upper, rows_copied, %(seconds)s * (rows_copied + 1) / sum(rows_copied + 1) OVER (), %(peak_memory)s
    FROM unnest(%(team_ids)s::bigint[], %(lowers)s::bytea[], %(uppers)s::bytea[], %(rows_copied)s::bigint[])
        AS copied (team_id, lower, upper, rows_copied)
    RETURNING *
)
UPDATE pdi2_migration.team
SET rows_copied = team.rows_copied + finished.rows_copied,
    slices_done = team.slices_done + 1,
    copy_seconds = team.copy_seconds + finished.seconds,
    peak_memory = greatest(team.peak_memory, finished.peak_memory)
FROM finished
WHERE team.team_id = finished.team_id
