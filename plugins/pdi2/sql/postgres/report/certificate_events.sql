-- The milestones of the migration, of all its runs. The ids that were known beforehand may be thousands.
SELECT at, actor, what, detail - 'known' AS detail
FROM pdi2_migration.event
WHERE what = ANY(%(milestones)s)
ORDER BY id
