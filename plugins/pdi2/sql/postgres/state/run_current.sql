SELECT id, airflow_run, actor, started_at, ended_at, outcome, settings
FROM pdi2_migration.run
ORDER BY id DESC
LIMIT 1
