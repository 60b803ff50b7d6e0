UPDATE pdi2_migration.team
SET status = 'verified', old_differs = %(old_differs)s, verified_at = clock_timestamp(), error = NULL
WHERE team_id = %(team_id)s
