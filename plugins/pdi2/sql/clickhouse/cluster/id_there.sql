-- Whether both tables have the id.
SELECT (SELECT count() FROM person_distinct_id
        WHERE team_id = {team_id:Int64} AND distinct_id = unhex({distinct_id:String})) > 0
   AND (SELECT count() FROM person_distinct_id2
        WHERE team_id = {team_id:Int64} AND distinct_id = unhex({distinct_id:String})) > 0
