-- Schemas in which every role may create something, and in which this role looks names up.
SELECT quote_ident(nspname)
FROM pg_namespace
WHERE nspname = ANY (current_schemas(false)) AND has_schema_privilege('public', oid, 'CREATE')
ORDER BY nspname
