-- Events, newest first. With a team, only its own events; with names, only events with these names, without the failed
-- tries of teams, of which an outage writes hundreds.
SELECT id, at, actor, what,
       CASE WHEN length((detail - 'known')::text) < 20000 THEN detail - 'known' ELSE '{}' END AS detail,
       count(*) OVER () AS total
FROM pdi2_migration.event
WHERE (%(team_id)s::bigint IS NULL OR (detail ->> 'team_id')::bigint = %(team_id)s)
  AND (%(names)s::text[] IS NULL
       OR what = ANY(%(names)s) AND NOT (what = 'task_failed' AND detail ->> 'task' LIKE 'team.%%'))
ORDER BY id DESC
LIMIT %(limit)s OFFSET %(offset)s
