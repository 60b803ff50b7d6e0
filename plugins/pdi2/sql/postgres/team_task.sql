-- Where the teams' tasks are found in Airflow.
UPDATE pdi2_migration.team
SET airflow_run = %(airflow_run)s, map_index = %(map_index)s
WHERE team_id = ANY(%(team_ids)s)
