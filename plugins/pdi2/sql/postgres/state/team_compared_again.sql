-- What the mark says of Postgres's rows stays: where rows are gone since then, the team is compared as a whole again.
UPDATE pdi2_migration.team
SET mark = mark || %(stood)s
WHERE team_id = ANY(%(team_ids)s)
