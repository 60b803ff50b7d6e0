SELECT count()
FROM person_distinct_id2
WHERE team_id = {team_id:Int64}
