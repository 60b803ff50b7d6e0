-- Whether a row with this stamp is in the new table, so its slice was handed over. Neither merges nor traffic bring one.
SELECT count()
FROM (
    SELECT team_id
    FROM person_distinct_id2
    WHERE /* include slice_range */
      AND _partition = {stamp:UInt64}
    LIMIT 1
)
