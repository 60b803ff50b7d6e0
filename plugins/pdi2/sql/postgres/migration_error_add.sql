INSERT INTO posthog_asyncmigrationerror (created_at, description, async_migration_id)
VALUES (now(), %(description)s, %(migration_id)s)
