-- Progress follows the ledger, in rows; 100 is for the switch alone.
UPDATE posthog_asyncmigration
SET progress = (
    SELECT least(99, floor(99.0 * coalesce(sum(rows_source + 1) FILTER (WHERE status = 'verified'), 0)
                           / greatest(sum(rows_source + 1), 1)))
    FROM pdi2_migration.team
)
WHERE name = %(name)s AND status = 5
