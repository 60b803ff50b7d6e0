SELECT DISTINCT finding.team_id
FROM pdi2_migration.finding
JOIN pdi2_migration.team ON team.team_id = finding.team_id
WHERE NOT finding.repaired AND team.status = 'verified'
