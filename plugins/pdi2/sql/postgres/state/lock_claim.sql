-- Held until the transaction ends, so that a task that begins meanwhile sees the new owner.
SELECT pg_try_advisory_xact_lock(hashtext('pdi2_migration'), 0)
