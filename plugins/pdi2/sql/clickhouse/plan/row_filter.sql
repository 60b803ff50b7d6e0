-- The row policies that apply to this user on a table are lines of a query plan, because few users have the grant to read
-- system.row_policies. The plan is no subquery: in FROM it would take the grant to create temporary tables. For an empty
-- table nothing shows, because it is not read.
EXPLAIN actions = 1 SELECT team_id FROM {table:Identifier}
