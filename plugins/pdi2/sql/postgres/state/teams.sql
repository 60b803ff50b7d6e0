-- These teams, or all of them (null), the largest first. The column slice_rows has the rows of a range.
SELECT team_id, status, rows_source, rows_copied, slices_done, slice_rows AS range_rows, memory_budget, attempts,
       copy_seconds, peak_memory, old_differs, tombstones, error
FROM pdi2_migration.team
WHERE %(team_ids)s::bigint[] IS NULL OR team_id = ANY(%(team_ids)s)
ORDER BY rows_source DESC, team_id
