SELECT id, airflow_run, actor, settings, started_at, ended_at, outcome,
       EXISTS (SELECT FROM pdi2_migration.certificate WHERE run_id = run.id) AS certificate
FROM pdi2_migration.run
ORDER BY id DESC
LIMIT %(limit)s
