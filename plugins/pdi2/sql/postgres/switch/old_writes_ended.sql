-- Whether old writes have ended since the newest switch of reads, whatever the setting says now.
SELECT what = 'old_writes_stopped'
FROM pdi2_migration.event
WHERE what IN ('reads_switched', 'old_writes_stopped')
ORDER BY id DESC
LIMIT 1
