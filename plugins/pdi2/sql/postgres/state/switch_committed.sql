-- When the newest switch of reads was known to be committed. No row if nothing has recorded that yet.
SELECT at
FROM pdi2_migration.event
WHERE what = 'switch_committed'
  AND id > (SELECT max(id) FROM pdi2_migration.event WHERE what = 'reads_switched')
ORDER BY id
LIMIT 1
