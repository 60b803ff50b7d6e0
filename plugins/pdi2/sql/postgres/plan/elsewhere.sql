-- The schema with the most of tables that the role does not find by name, and whether it may use that schema.
SELECT quote_ident(pg_namespace.nspname),
       has_schema_privilege(pg_namespace.oid, 'USAGE'),
       array_agg(pg_class.relname::text ORDER BY pg_class.relname),
       current_setting('search_path'),
       quote_ident(current_user)
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
WHERE pg_class.relname = ANY (%(tables)s::text[]) AND pg_class.relkind IN ('r', 'p') AND pg_namespace.nspname !~ '^pg_'
GROUP BY pg_namespace.oid, pg_namespace.nspname
ORDER BY count(*) DESC, pg_namespace.nspname <> 'public', pg_namespace.nspname
LIMIT 1
