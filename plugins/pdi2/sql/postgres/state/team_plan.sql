-- A team that an earlier run left unfinished keeps its slices. A verified team stays verified.
INSERT INTO pdi2_migration.team AS known (team_id, status, rows_source)
SELECT team_id, 'planned', rows_source
FROM jsonb_to_recordset(%(teams)s) AS wanted (team_id bigint, rows_source bigint)
ON CONFLICT (team_id) DO UPDATE
SET status = CASE known.status WHEN 'copied' THEN 'copied' ELSE 'planned' END,
    rows_source = excluded.rows_source,
    error = NULL,
    memory_budget = NULL,
    planned_at = now()
WHERE known.status <> 'verified'
