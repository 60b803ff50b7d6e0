-- What a reader sees in the buckets that are flagged with 1, in key order.
SELECT team_id, distinct_id, content, newest, contradictory
FROM (
/* include seen */
)
WHERE (deleted = 0 OR contradictory)
  AND substring({flags:String}, bitAnd(content, {mask:Int64}) + 1, 1) = '1'
ORDER BY team_id, distinct_id
