INSERT INTO pdi2_migration.certificate (run_id, name, json, html)
VALUES (%(run_id)s, %(name)s, %(json)s, %(html)s)
ON CONFLICT (run_id) DO UPDATE SET name = excluded.name, json = excluded.json, html = excluded.html
