-- The copied rows of verified teams are still there, but may be out of date: verify compares them with Postgres again.
UPDATE pdi2_migration.team
SET status = 'copied'
WHERE status = 'verified'
