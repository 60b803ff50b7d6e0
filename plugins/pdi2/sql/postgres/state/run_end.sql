UPDATE pdi2_migration.run
SET ended_at = clock_timestamp(), outcome = %(outcome)s
WHERE id = %(id)s
