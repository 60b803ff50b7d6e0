-- In order of time and in several blocks, each of which becomes a part with ids from all over the key range.
INSERT INTO person_distinct_id (distinct_id, person_id, team_id, _sign, _timestamp, _offset)
SELECT
    distinct_id,
    persons[step.person] AS person_id,
    team_id,
    step.sign AS _sign,
    times[step.time] AS _timestamp,
    -- Offsets rise with time and have gaps, and a row delivered twice has the same one.
    (toUnixTimestamp(_timestamp) - {old_begins:UInt32}) * 1000000 + n % 100000 * 10 + indexOf(old, step) AS _offset
FROM seed_id
INNER JOIN seed_history USING (kind)
ARRAY JOIN old AS step
WHERE (kind = 'unlink eaten') = {unlink_eaten:Bool}
ORDER BY _offset
