SELECT id, status, progress, started_at, finished_at
FROM posthog_asyncmigration
WHERE name::text = %(name)s
