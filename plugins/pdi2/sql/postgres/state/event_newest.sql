SELECT at, actor, what, detail
FROM pdi2_migration.event
WHERE what = ANY(%(names)s)
  AND (NOT %(of_run)s OR at >= (SELECT started_at FROM pdi2_migration.run ORDER BY id DESC LIMIT 1))
ORDER BY id DESC
LIMIT 1
