SELECT distinct_id
FROM person_distinct_id
WHERE team_id = {team_id:Int64} AND distinct_id > unhex({lower:String})
ORDER BY team_id, distinct_id
LIMIT 1
SETTINGS optimize_read_in_order = 1, max_block_size = 8192
