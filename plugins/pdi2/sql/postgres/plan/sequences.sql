-- Sequences that the role may not use, of tables that it may insert into.
SELECT wanted.name, numbered.sequence
FROM (SELECT DISTINCT name FROM unnest(%(tables)s::text[]) AS given (name) WHERE to_regclass(name) IS NOT NULL) AS wanted
CROSS JOIN LATERAL (
    SELECT CASE WHEN has_table_privilege(wanted.name, 'INSERT') THEN pg_get_serial_sequence(wanted.name, 'id') END
) AS numbered (sequence)
WHERE numbered.sequence IS NOT NULL AND NOT has_sequence_privilege(numbered.sequence, 'USAGE')
