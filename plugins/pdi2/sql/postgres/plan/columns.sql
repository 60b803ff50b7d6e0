SELECT wanted.name, array_agg(pg_attribute.attname::text)
FROM unnest(%(tables)s::text[]) AS wanted (name)
JOIN pg_attribute ON pg_attribute.attrelid = to_regclass(wanted.name)
WHERE pg_attribute.attnum > 0 AND NOT pg_attribute.attisdropped
GROUP BY wanted.name
