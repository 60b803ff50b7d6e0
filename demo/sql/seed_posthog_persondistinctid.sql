SELECT
    n + 1 AS id,
    distinct_id,
    person_numbers[owner] + 1 AS person_id,
    team_id,
    -- Rows from before this column existed that were never changed since have no version.
    if(version = 0 AND times[1] < {new_begins:DateTime}, NULL, version) AS version
FROM seed_id
INNER JOIN seed_history USING (kind)
WHERE owner != 0
ORDER BY id
