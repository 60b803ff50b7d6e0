-- The rest of the mark stays: what it shows as changed in Postgres is looked at once more.
UPDATE pdi2_migration.team
SET mark = jsonb_set(mark, '{at}', to_jsonb(%(at)s::bigint))
WHERE team_id = ANY(%(team_ids)s)
