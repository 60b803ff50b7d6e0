-- Ids of all teams that the new table has a row of since then, at most so many a team.
SELECT team_id, distinct_id, toUnixTimestamp(max(_timestamp)) AS touched_at
FROM person_distinct_id2
WHERE _timestamp >= toDateTime({since:UInt32})
GROUP BY team_id, distinct_id
ORDER BY team_id
LIMIT {most:UInt64} BY team_id
