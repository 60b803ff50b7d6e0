-- Sequences behind ids that the role may insert and not number.
SELECT wanted.name, numbered.sequence
FROM (SELECT DISTINCT name FROM unnest(%(tables)s::text[]) AS given (name) WHERE to_regclass(name) IS NOT NULL) AS wanted
CROSS JOIN LATERAL (
    SELECT CASE WHEN has_table_privilege(wanted.name, 'INSERT') THEN pg_get_serial_sequence(wanted.name, 'id') END
) AS numbered (sequence)
WHERE numbered.sequence IS NOT NULL AND NOT has_sequence_privilege(numbered.sequence, 'USAGE')
