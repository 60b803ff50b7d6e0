SELECT name, json, html FROM pdi2_migration.certificate WHERE run_id = %(run_id)s
