-- Whether a row with this stamp is in the new table, so its slice was handed over. Neither merges nor the application
-- write such a row.
SELECT count()
FROM (
    SELECT team_id
    FROM person_distinct_id2
    WHERE /* include slice_range */
      AND _partition = {stamp:UInt64}
    LIMIT 1
)
