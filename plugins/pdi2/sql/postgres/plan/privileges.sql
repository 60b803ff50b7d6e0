SELECT wanted.name, wanted.privilege
FROM unnest(%(tables)s::text[], %(privileges)s::text[]) AS wanted (name, privilege)
WHERE to_regclass(wanted.name) IS NOT NULL
  AND NOT has_table_privilege(to_regclass(wanted.name), wanted.privilege)
