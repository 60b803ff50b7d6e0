-- The newest event of each name in the run, without the long lists of a baseline's links and of an audit's teams.
SELECT what, at, actor, detail - 'known' - 'team_ids' AS detail
FROM pdi2_migration.event
WHERE id IN (
    SELECT max(id)
    FROM pdi2_migration.event
    WHERE at >= %(since)s AND (%(until)s::timestamptz IS NULL OR at < %(until)s)
    GROUP BY what
)
