-- The newest runs, or the named one; repair is a parameter of audits. until: when the next run began; newest: whether
-- there is no next run.
SELECT id, airflow_run, actor, settings - 'repair' AS settings, started_at, ended_at, outcome, until, until IS NULL AS newest,
       EXISTS (SELECT FROM pdi2_migration.certificate WHERE run_id = run.id) AS certificate
FROM (SELECT *, lead(started_at) OVER (ORDER BY id) AS until FROM pdi2_migration.run) AS run
WHERE %(airflow_run)s::text IS NULL OR airflow_run = %(airflow_run)s
ORDER BY id DESC
LIMIT %(limit)s
