-- When an id was last repaired that the application had linked, in seconds since the epoch.
SELECT extract(epoch FROM max(found_at))
FROM pdi2_migration.finding
WHERE repaired AND kind IN ('missing', 'stale', 'wrong_person')
