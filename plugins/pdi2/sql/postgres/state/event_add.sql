-- Never before its transaction began, though the clock may be set back: see migration_row_change.sql, which takes that time.
INSERT INTO pdi2_migration.event (at, actor, what, detail)
VALUES (greatest(clock_timestamp(), now()), %(actor)s, %(what)s, %(detail)s)
