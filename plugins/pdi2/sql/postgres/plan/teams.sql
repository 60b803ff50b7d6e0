SELECT team_id, status, rows_source, rows_copied, slices_done, slice_rows, memory_budget, attempts, copy_seconds, peak_memory,
       old_differs, tombstones, error
FROM pdi2_migration.team
ORDER BY rows_source DESC, team_id
