-- The ids at which the team's granules begin, from the primary index alone.
SELECT distinct_id, sum(rows_in_granule), groupUniqArray(part_name)
FROM mergeTreeIndex(currentDatabase(), '{table:Identifier}')
WHERE team_id IN {team_ids:Array(Int64)}
  AND distinct_id > unhex({lower:String})
  AND ({to_the_end:Bool} OR distinct_id < unhex({upper:String}))
GROUP BY distinct_id
ORDER BY distinct_id
