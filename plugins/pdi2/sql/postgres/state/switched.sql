-- Whether this project made the switch that the migration row's finished_at records, and has not taken it back.
SELECT what = 'reads_switched' AND at >= %(finished_at)s::timestamptz
FROM pdi2_migration.event
WHERE what IN ('reads_switched', 'rolled_back')
ORDER BY id DESC
LIMIT 1
