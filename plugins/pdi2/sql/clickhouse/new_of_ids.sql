-- The newest row of each id; more than one where rows of one version contradict each other, and a merge would
-- decide by chance what a reader sees.
SELECT DISTINCT distinct_id, person_id, is_deleted, version
FROM (
    SELECT distinct_id, person_id, is_deleted, version,
           max(version) OVER (PARTITION BY distinct_id) AS newest
    FROM person_distinct_id2
    WHERE team_id = {team_id:Int64} AND distinct_id IN (SELECT unhex(arrayJoin({distinct_ids:Array(String)})))
)
WHERE version = newest
