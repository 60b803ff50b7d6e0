UPDATE pdi2_migration.team
SET memory_budget = %(memory_budget)s
WHERE team_id = %(team_id)s
