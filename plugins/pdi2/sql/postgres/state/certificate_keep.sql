INSERT INTO pdi2_migration.certificate (run_id, name, json, html)
SELECT max(id), %(name)s, %(json)s, %(html)s FROM pdi2_migration.run
ON CONFLICT (run_id) DO UPDATE SET name = excluded.name, json = excluded.json, html = excluded.html
