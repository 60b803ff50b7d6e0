-- The teams agree with Postgres now, so nothing that was found in them earlier is still wrong.
UPDATE pdi2_migration.finding
SET repaired = true
WHERE team_id = ANY(%(team_ids)s) AND NOT repaired
