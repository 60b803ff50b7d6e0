-- How many live ids of these rows the new table does not have in any version.
SELECT count()
FROM (
/* include winners */
)
WHERE (team_id, distinct_id) NOT IN (
    SELECT team_id, distinct_id
    FROM person_distinct_id2
    WHERE /* include slice_range */
      AND /* include id_hash */ IN (SELECT id_hash FROM {complex_ids:Identifier})
)
