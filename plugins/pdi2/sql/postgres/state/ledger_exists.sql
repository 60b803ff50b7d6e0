SELECT to_regclass('pdi2_migration.event') IS NOT NULL
