UPDATE pdi2_migration.run
SET ended_at = clock_timestamp(), outcome = %(outcome)s
WHERE id = (SELECT max(id) FROM pdi2_migration.run) AND airflow_run = %(airflow_run)s
