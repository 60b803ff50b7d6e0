-- Ids of all teams with a row in the new table since `since`, up to `most` per team, in no order: sorting would hold
-- all of them in memory.
SELECT team_id, distinct_id, toUnixTimestamp(max(_timestamp)) AS touched_at
FROM person_distinct_id2
WHERE _timestamp >= toDateTime({since:UInt32})
GROUP BY team_id, distinct_id
LIMIT {most:UInt64} BY team_id
