UPDATE pdi2_migration.team
SET status = 'copied', copied_at = clock_timestamp()
WHERE team_id = ANY(%(team_ids)s)
