SELECT team_id
FROM pdi2_migration.slice
WHERE team_id = ANY(%(team_ids)s) AND upper IS NULL
