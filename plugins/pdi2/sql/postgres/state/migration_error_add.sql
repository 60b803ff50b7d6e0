-- PostHog 1.32 has varchar(400) for the description, later releases text: it is shortened to what the column takes. The
-- catalogue has a varchar's limit plus 4, and -1 where there is none.
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
