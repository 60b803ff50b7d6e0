UPDATE pdi2_migration.team
SET status = 'copying', attempts = attempts + %(attempts)s, error = NULL
WHERE team_id = ANY(%(team_ids)s)
