WITH finished AS (
    INSERT INTO pdi2_migration.slice (team_id, lower, upper, rows_copied, seconds, peak_memory)
    VALUES (%(team_id)s, %(lower)s, %(upper)s, %(rows_copied)s, %(seconds)s, %(peak_memory)s)
    RETURNING *
)
UPDATE pdi2_migration.team
SET rows_copied = team.rows_copied + finished.rows_copied,
    slices_done = team.slices_done + 1,
    copy_seconds = team.copy_seconds + finished.seconds,
    peak_memory = greatest(team.peak_memory, finished.peak_memory)
FROM finished
WHERE team.team_id = finished.team_id
