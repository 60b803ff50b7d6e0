-- Whether the old table has a link of the id from that time.
SELECT count() > 0
FROM person_distinct_id
WHERE team_id = {team_id:Int64} AND distinct_id = unhex({distinct_id:String})
  AND _timestamp BETWEEN toDateTime({since:UInt32}) AND toDateTime({until:UInt32}) AND _sign = 1
