INSERT INTO pdi2_migration.run (airflow_run, actor, settings)
VALUES (%(airflow_run)s, %(actor)s, %(settings)s)
