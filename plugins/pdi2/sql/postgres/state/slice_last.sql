-- Slices are finished in key order, so the last one is the checkpoint.
SELECT upper
FROM pdi2_migration.slice
WHERE team_id = %(team_id)s
ORDER BY lower DESC
LIMIT 1
