-- After a rollback everything copied is still there, but time has passed: Postgres decides again.
UPDATE pdi2_migration.team
SET status = 'copied'
WHERE status = 'verified'
