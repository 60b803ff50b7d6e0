UPDATE pdi2_migration.team
SET status = 'failed', error = %(error)s
WHERE team_id = %(team_id)s
