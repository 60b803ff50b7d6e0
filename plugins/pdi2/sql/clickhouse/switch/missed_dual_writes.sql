-- Ids whose latest link reached the old table within the window, but for which the new table has neither that person
-- nor anything as recent, with the greatest version that it has. An id with a later unlink, or with a link after the
-- window, is still changing and is left out. If one_of is above 1, this looks at a sample of the ids.
WITH
    toDateTime({window_start:UInt32}) AS window_start,
    toDateTime({window_end:UInt32}) AS window_end,
    touched AS (
        SELECT team_id, distinct_id
        FROM person_distinct_id
        WHERE _timestamp > window_start AND _timestamp <= window_end AND _sign = 1
          AND cityHash64(team_id, distinct_id) % {one_of:UInt32} = 0
    ),
    latest AS (
        SELECT team_id, distinct_id,
               max((_timestamp, _offset, -_sign, person_id)) AS last,
               cityHash64(team_id, distinct_id, last) AS event
        FROM person_distinct_id
        WHERE (team_id, distinct_id) IN (SELECT team_id, distinct_id FROM touched)
        GROUP BY team_id, distinct_id
        HAVING last.3 = -1 AND last.1 > window_start AND last.1 <= window_end
    ),
    arrived AS (
        SELECT team_id, distinct_id, groupUniqArray(person_id) AS persons, max(_timestamp) AS newest,
               max(version) AS version
        FROM person_distinct_id2
        WHERE (team_id, distinct_id) IN (SELECT team_id, distinct_id FROM touched)
        GROUP BY team_id, distinct_id
    )
SELECT latest.team_id, latest.distinct_id, toUnixTimestamp(latest.last.1) AS written_at, latest.event,
       if(notEmpty(arrived.persons), arrived.version, NULL) AS version, count() OVER () AS misses
FROM latest
LEFT JOIN arrived ON arrived.team_id = latest.team_id AND arrived.distinct_id = latest.distinct_id
WHERE NOT has(arrived.persons, latest.last.4)
  AND NOT (notEmpty(arrived.persons) AND arrived.newest > latest.last.1)
  AND NOT has(/* include known_links */, latest.event)
ORDER BY written_at DESC
LIMIT {most:UInt32}
