-- Who approved what was certified last, unless something came of it since.
SELECT detail->>'by'
FROM pdi2_migration.event
WHERE what = 'switch_approved'
  AND id > (
      SELECT max(id) FROM pdi2_migration.event
      WHERE what IN ('certified', 'switch_rejected', 'reads_switched', 'rolled_back')
  )
ORDER BY id DESC
LIMIT 1
