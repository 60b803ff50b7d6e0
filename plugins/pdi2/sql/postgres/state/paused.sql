-- One row if the migration is paused: who paused it, and when.
SELECT at, actor
FROM (
    SELECT at, actor, what
    FROM pdi2_migration.event
    WHERE what IN ('paused', 'resumed')
    ORDER BY id DESC
    LIMIT 1
) AS latest
WHERE what = 'paused'
