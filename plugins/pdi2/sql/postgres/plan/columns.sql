-- Of tables alone: a view or a foreign table does not tell which rows are new (xmin).
SELECT wanted.name, array_agg(pg_attribute.attname::text)
FROM unnest(%(tables)s::text[]) AS wanted (name)
JOIN pg_class ON pg_class.oid = to_regclass(wanted.name) AND pg_class.relkind IN ('r', 'p')
JOIN pg_attribute ON pg_attribute.attrelid = pg_class.oid
WHERE pg_attribute.attnum > 0 AND NOT pg_attribute.attisdropped
GROUP BY wanted.name
