-- Whether this run proved the dual write, and has not turned it on anew or missed a link since.
SELECT what = 'dual_writes_proven'
FROM pdi2_migration.event
WHERE what IN ('dual_writes_enabled', 'dual_writes_missed', 'dual_writes_proven')
  AND at >= (SELECT started_at FROM pdi2_migration.run ORDER BY id DESC LIMIT 1)
ORDER BY id DESC
LIMIT 1
