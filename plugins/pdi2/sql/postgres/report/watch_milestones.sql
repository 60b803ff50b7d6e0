-- The newest event of each name of the run, without a baseline's long list of links or an audit's of teams.
SELECT what, at, actor, detail - 'known' - 'team_ids' AS detail
FROM pdi2_migration.event
WHERE id IN (
    SELECT max(id)
    FROM pdi2_migration.event
    WHERE at >= %(since)s AND (%(until)s::timestamptz IS NULL OR at < %(until)s)
    GROUP BY what
)
