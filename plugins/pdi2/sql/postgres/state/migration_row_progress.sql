-- The share of the work that is done, as on the migration page (watch_totals.sql): copying a row costs copy_share of
-- what it costs to copy and verify it. Only the switch sets 100. A trial counts only its own teams.
UPDATE posthog_asyncmigration
SET progress = (
    SELECT least(99, floor(99.0 * coalesce(
        sum(CASE WHEN status = 'verified' THEN rows_source + 1
                 WHEN status = 'copied' THEN %(copy_share)s * (rows_source + 1)
                 ELSE %(copy_share)s * least(rows_copied, rows_source) END) / sum(rows_source + 1), 0)))
    FROM pdi2_migration.team
    WHERE coalesce(
        (SELECT jsonb_typeof(settings -> 'team_ids') <> 'array' OR settings -> 'team_ids' @> to_jsonb(team_id)
         FROM pdi2_migration.run ORDER BY id DESC LIMIT 1), true)
)
WHERE name::text = %(name)s AND status = 5
