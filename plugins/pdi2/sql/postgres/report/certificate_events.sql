-- The milestones of all runs of the migration, without the list of known links, which may have thousands of entries.
SELECT at, actor, what, detail - 'known' AS detail
FROM pdi2_migration.event
WHERE what = ANY(%(milestones)s)
ORDER BY id
