SELECT detail
FROM pdi2_migration.event
WHERE what = %(what)s
  AND at >= (SELECT started_at FROM pdi2_migration.run ORDER BY id DESC LIMIT 1)
ORDER BY id DESC
LIMIT 1
