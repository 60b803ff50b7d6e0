-- Whether the ledger has the newest parts of what ledger_create.sql creates.
SELECT to_regclass('pdi2_migration.event') IS NOT NULL
   AND to_regclass('pdi2_migration.finding_identity_by_id') IS NOT NULL
   AND (SELECT relreplident FROM pg_class WHERE oid = to_regclass('pdi2_migration.finding')) = 'f'
   AND to_regclass('pdi2_migration.certificate') IS NOT NULL
   AND count(*) = 7
FROM pg_attribute
WHERE NOT attisdropped
  AND (attrelid = to_regclass('pdi2_migration.finding') AND attname = 'written'
       OR attrelid = to_regclass('pdi2_migration.team')
           AND attname IN ('mark', 'digest', 'truth_digest', 'map_index', 'tombstones', 'verify_seconds'))
