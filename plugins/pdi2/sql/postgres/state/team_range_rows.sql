UPDATE pdi2_migration.team
SET slice_rows = %(range_rows)s
WHERE team_id = %(team_id)s
