-- How many rows copy_simple.sql writes, by team.
SELECT team_id, count()
FROM person_distinct_id
WHERE /* include slice_range */
  AND /* include id_hash */ NOT IN {complex_set:Identifier}
GROUP BY team_id
