SELECT id, status, progress, finished_at
FROM posthog_asyncmigration
WHERE name = %(name)s
