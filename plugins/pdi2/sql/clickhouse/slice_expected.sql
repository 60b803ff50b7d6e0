SELECT uniqExact(distinct_id)
FROM (
    SELECT distinct_id, person_id, max((_timestamp, _offset, -_sign)) AS last
    FROM person_distinct_id
    WHERE team_id = {team_id:Int64}
      AND distinct_id >= unhex({lower:String})
      AND ({to_the_end:Bool} OR distinct_id < unhex({upper:String}))
    GROUP BY distinct_id, person_id
    HAVING last.3 = -1
)
