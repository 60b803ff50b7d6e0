-- How many rows copy_simple.sql writes, by team.
SELECT team_id, count()
FROM person_distinct_id
PREWHERE /* include simple_ids */
GROUP BY team_id
