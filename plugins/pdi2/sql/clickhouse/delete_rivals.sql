-- Rows of one version that contradict each other are decided by chance when they merge; only Postgres's stays. Each
-- row that goes is named in full; the ids' range finds it in the index. No subquery: a replicated table refuses it in
-- a DELETE (ClickHouse #43237); and no IN over an expression, which ClickHouse 24.8 does not compute there.
-- As a Bool, is_deleted would be told as true or false.
DELETE FROM person_distinct_id2
WHERE team_id = {team_id:Int64}
  AND distinct_id >= unhex({first:String}) AND distinct_id <= unhex({last:String})
  AND has({rivals:Array(String)},
          concat(lower(hex(distinct_id)), ' ', toString(version), ' ', toString(person_id), ' ', toString(toInt8(is_deleted))))
