-- The row policies that apply to this user on a table. They are read from a query plan, because few users have the
-- grant to read system.row_policies. For an empty table nothing shows, because it is not read.
SELECT replaceRegexpOne(trimLeft(explain), 'Row level filter column: *', '')
FROM (EXPLAIN actions = 1 SELECT team_id FROM {table:Identifier})
WHERE explain LIKE '%Row level filter column:%'
