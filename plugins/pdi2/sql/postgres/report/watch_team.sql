SELECT team_id, status, rows_source, rows_copied, slices_done, memory_budget, attempts, copy_seconds, verify_seconds,
       peak_memory, old_differs, airflow_run, map_index, copied_at, verified_at, left(error, 4000) AS error
FROM pdi2_migration.team
WHERE team_id = %(team_id)s
