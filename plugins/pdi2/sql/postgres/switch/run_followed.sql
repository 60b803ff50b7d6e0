-- Whether this run claimed the migration, and another one has claimed it since.
SELECT EXISTS (SELECT FROM pdi2_migration.run WHERE airflow_run = %(airflow_run)s)
   AND %(airflow_run)s <> (SELECT airflow_run FROM pdi2_migration.run ORDER BY id DESC LIMIT 1)
