SELECT detail
FROM pdi2_migration.event
WHERE what = %(what)s
ORDER BY id DESC
LIMIT 1
