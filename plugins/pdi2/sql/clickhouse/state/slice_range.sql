team_id IN {team_ids:Array(Int64)}
AND ({from_the_start:Bool} OR distinct_id >= unhex({lower:String}))
AND ({to_the_end:Bool} OR distinct_id < unhex({upper:String}))
