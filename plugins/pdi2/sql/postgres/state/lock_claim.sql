-- Until the transaction ends: whoever begins a task meanwhile sees the new owner.
SELECT pg_try_advisory_xact_lock(hashtext('pdi2_migration'), 0)
