-- The teams agree with Postgres now, so nothing that was found in them earlier (null: at any time) is still wrong.
UPDATE pdi2_migration.finding
SET repaired = true
WHERE NOT repaired
  AND (%(team_ids)s::bigint[] IS NULL OR team_id = ANY(%(team_ids)s))
  AND (%(found_before)s::timestamptz IS NULL OR found_at < %(found_before)s)
