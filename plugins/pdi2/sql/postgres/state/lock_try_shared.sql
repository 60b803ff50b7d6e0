SELECT pg_try_advisory_lock_shared(hashtext('pdi2_migration'), 0)
