-- The first distinct_id after `rows` rows in key order, read from the key alone; none: the slice is the last.
SELECT distinct_id
FROM person_distinct_id
WHERE team_id = {team_id:Int64} AND distinct_id >= unhex({lower:String})
ORDER BY team_id, distinct_id
LIMIT 1 OFFSET {rows:UInt64}
SETTINGS optimize_read_in_order = 1, max_block_size = 8192
