UPDATE pdi2_migration.team
SET status = 'failed', error = %(error)s
WHERE team_id = ANY(%(team_ids)s)
