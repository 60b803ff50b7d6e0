SELECT uniqExact(cityHash64(distinct_id))
FROM person_distinct_id2
WHERE team_id = {team_id:Int64}
  AND distinct_id >= unhex({lower:String})
  AND ({to_the_end:Bool} OR distinct_id < unhex({upper:String}))
