-- The row policies of this user on a table, as the plan of a query shows them: to read system.row_policies takes a grant
-- that few users have. An empty table is not read, so nothing shows.
SELECT replaceRegexpOne(trimLeft(explain), 'Row level filter column: *', '')
FROM (EXPLAIN actions = 1 SELECT team_id FROM {table:Identifier})
WHERE explain LIKE '%Row level filter column:%'
