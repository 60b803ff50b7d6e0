UPDATE pdi2_migration.team
SET mark = compared.mark
FROM jsonb_each(%(marks)s) AS compared (team_id, mark)
WHERE team.team_id = compared.team_id::bigint
