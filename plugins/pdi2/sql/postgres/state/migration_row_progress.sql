-- The share of the work that is done, as on the migration page. Only the switch sets 100. A trial counts only its own
-- teams.
UPDATE posthog_asyncmigration
SET progress = (
    SELECT least(99, floor(99.0 * coalesce(/* include work_done */ / sum(rows_source + 1), 0)))
    FROM pdi2_migration.team
    WHERE coalesce(
        (SELECT jsonb_typeof(settings -> 'team_ids') <> 'array' OR settings -> 'team_ids' @> to_jsonb(team_id)
         FROM pdi2_migration.run ORDER BY id DESC LIMIT 1), true)
)
WHERE name::text = %(name)s AND status = 5
