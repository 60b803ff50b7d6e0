-- How long ago it was found last that the new table lacked what the application had linked, in seconds. A process that
-- died may have repaired that, though the finding is still open.
SELECT extract(epoch FROM clock_timestamp() - max(found_at))
FROM pdi2_migration.finding
WHERE kind IN ('missing', 'stale', 'wrong_person')
