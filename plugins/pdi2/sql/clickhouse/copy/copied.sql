SELECT team_id, count()
FROM person_distinct_id2
WHERE /* include slice_range */
  AND version < -1
GROUP BY team_id
