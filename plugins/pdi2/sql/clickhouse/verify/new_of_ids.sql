-- The newest row of each id, or several rows if those of the newest version contradict each other. Then a merge would
-- decide by chance what a reader sees.
SELECT DISTINCT team_id, distinct_id, person_id, is_deleted, version
FROM (
    SELECT team_id, distinct_id, person_id, is_deleted, version,
           max(version) OVER (PARTITION BY team_id, distinct_id) AS newest
    FROM person_distinct_id2
    WHERE /* include keys */
)
WHERE version = newest
