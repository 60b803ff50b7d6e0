-- The description is varchar(400) in PostHog 1.32 and text in later releases, so it is cut to what the column takes.
-- The catalogue stores the limit of a varchar plus 4, or -1 if there is no limit.
INSERT INTO posthog_asyncmigrationerror (created_at, description, async_migration_id)
SELECT now(),
       CASE WHEN length(given.reason) > column_of.longest
            THEN left(given.reason, column_of.longest - 4) || ' ...'
            ELSE given.reason END,
       %(migration_id)s
FROM (SELECT %(description)s::text AS reason) AS given
CROSS JOIN (
    SELECT nullif(atttypmod, -1) - 4 AS longest
    FROM pg_attribute
    WHERE attrelid = to_regclass('posthog_asyncmigrationerror') AND attname = 'description'
) AS column_of
