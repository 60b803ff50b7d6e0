-- Each row is named in full, so that a write that arrives meanwhile stays. The range finds the rows by the index.
-- There is no subquery, because a replicated table refuses one in a DELETE (ClickHouse #43237), and there are literals,
-- because ClickHouse 24.8 does not evaluate expressions after IN in a DELETE, and bound values are part of the request's
-- address, which is too short for a long id.
DELETE FROM person_distinct_id2
WHERE team_id IN {team_ids:Literal}
  AND distinct_id >= unhex({first:Literal}) AND distinct_id <= unhex({last:Literal})
  AND version >= -1
  AND /* include row_name */ IN {names:Literal}
