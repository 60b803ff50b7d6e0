-- Ids with a row in the new table since their team's own time, up to `most` per team, in no order: sorting would hold
-- all of them in memory.
SELECT team_id, distinct_id
FROM person_distinct_id2
WHERE team_id IN {team_ids:Literal}
  AND toUnixTimestamp(_timestamp) >= transform(team_id, {team_ids:Literal}, {since:Literal}, 0)
GROUP BY team_id, distinct_id
LIMIT {most:UInt64} BY team_id
