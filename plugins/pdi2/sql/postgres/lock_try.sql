SELECT pg_try_advisory_lock(hashtext('pdi2_migration'), 0)
