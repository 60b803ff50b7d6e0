SELECT DISTINCT team_id
FROM pdi2_migration.finding
WHERE NOT repaired
