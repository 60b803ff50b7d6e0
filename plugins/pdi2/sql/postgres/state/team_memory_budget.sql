UPDATE pdi2_migration.team
SET memory_budget = %(memory_budget)s
WHERE team_id = ANY(%(team_ids)s)
