-- Tables of which a policy may hide rows from the role. NULL, and so left out, is a table that is not there.
SELECT name
FROM unnest(%(tables)s::text[]) AS wanted (name)
WHERE row_security_active(to_regclass(name))
