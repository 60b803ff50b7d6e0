INSERT INTO pdi2_migration.event (actor, what, detail)
VALUES (%(actor)s, %(what)s, %(detail)s)
