-- Whether an event of ours is of the transaction that set the row's time, or later: another's change is newer than ours.
SELECT max(at) >= %(since)s::timestamptz
FROM pdi2_migration.event
WHERE what = %(what)s
