-- Who owns the ledger's schema, who this role is, and what this role may not use. No row if there is no schema. This reads
-- the catalog, because a name in a schema that the role may not use cannot even be looked up.
SELECT quote_ident(pg_get_userbyid(nspowner)), quote_ident(current_user),
       ARRAY(
           SELECT 'the schema'
           WHERE NOT has_schema_privilege(pg_namespace.oid, 'USAGE')
              OR NOT has_schema_privilege(pg_namespace.oid, 'CREATE')
                 AND NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = pg_namespace.oid)
           UNION ALL
           SELECT relname::text
           FROM pg_class
           WHERE relnamespace = pg_namespace.oid
             AND CASE relkind
                     WHEN 'r' THEN NOT (has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
                                        AND has_table_privilege(oid, 'UPDATE'))
                     WHEN 'S' THEN NOT has_sequence_privilege(oid, 'USAGE')
                     ELSE false
                 END
       )
FROM pg_namespace
WHERE nspname = 'pdi2_migration'
