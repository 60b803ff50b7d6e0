INSERT INTO person_distinct_id2
SELECT
    team_id,
    distinct_id,
    persons[step.person] AS person_id,
    step.is_deleted AS is_deleted,
    step.version AS version,
    times[step.time] AS _timestamp,
    (toUnixTimestamp(_timestamp) - {old_begins:UInt32}) * 1000000 + n % 100000 * 10 + indexOf(new, step) AS _offset,
    0 AS _partition
FROM seed_id
INNER JOIN seed_history USING (kind)
ARRAY JOIN new AS step
WHERE _timestamp >= {new_begins:DateTime}
ORDER BY _offset
