SELECT min(slice_rows)
FROM pdi2_migration.team
