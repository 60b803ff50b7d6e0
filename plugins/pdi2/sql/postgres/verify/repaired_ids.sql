SELECT DISTINCT team_id, distinct_id
FROM pdi2_migration.finding
WHERE repaired AND team_id = ANY(%(team_ids)s)
