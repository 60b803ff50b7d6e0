-- Rows of one version that contradict each other are decided by chance when they merge; only Postgres's stays.
DELETE FROM person_distinct_id2
WHERE team_id = {team_id:Int64} AND distinct_id = unhex({distinct_id:String})
  AND version = {version:Int64} AND (person_id <> {person_id:UUID} OR is_deleted = 1)
