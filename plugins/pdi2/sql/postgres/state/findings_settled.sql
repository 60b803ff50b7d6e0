-- The teams agreed with Postgres when they were compared, so nothing that was found in them before is still wrong.
UPDATE pdi2_migration.finding
SET repaired = true
WHERE NOT repaired
  AND (%(team_ids)s::bigint[] IS NULL OR team_id = ANY(%(team_ids)s))
  AND found_at < %(found_before)s
