-- Where to find the teams' tasks in Airflow.
UPDATE pdi2_migration.team
SET airflow_run = %(airflow_run)s, map_index = task.map_index
FROM jsonb_to_recordset(%(tasks)s) AS task (map_index int, team_ids bigint[])
WHERE team.team_id = ANY(task.team_ids)
