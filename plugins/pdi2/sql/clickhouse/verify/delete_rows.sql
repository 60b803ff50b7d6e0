-- Each row that goes is named in full, so that a write which arrives meanwhile stays; the range finds them in the index.
-- No subquery: a replicated table refuses it in a DELETE (ClickHouse #43237). Literals, because ClickHouse 24.8 computes
-- no expression after IN there.
DELETE FROM person_distinct_id2
WHERE team_id IN {team_ids:Literal}
  AND distinct_id >= unhex({first:String}) AND distinct_id <= unhex({last:String})
  AND version >= -1
  AND /* include row_name */ IN {names:Literal}
