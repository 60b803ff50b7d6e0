SELECT pg_advisory_unlock(hashtext('pdi2_migration'), 0)
