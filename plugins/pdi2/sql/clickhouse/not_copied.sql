-- Hashes of the live ids of the old table that the new one does not have at all, in whatever version.
SELECT groupArray(/* include id_hash */)
FROM (
/* include winners */
)
WHERE (team_id, distinct_id) NOT IN (
    SELECT team_id, distinct_id
    FROM person_distinct_id2
    WHERE /* include slice_range */
)
