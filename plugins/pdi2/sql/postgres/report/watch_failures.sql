-- What failed in the run, grouped by ClickHouse's name for the error, or else by its text without numbers: teams that
-- the run planned and that are failed now, and tasks that belong to no team. The earliest failure comes first. The gate
-- only counts failures, so it comes last. Tasks of teams are retried, so they count only if the run has ended with no
-- team marked as failed, as happens if a task was killed or never reached ClickHouse.
WITH failed_team AS (
    SELECT error, team_id
    FROM pdi2_migration.team
    WHERE %(newest)s AND status = 'failed' AND planned_at >= %(since)s
),
failed AS (
    SELECT error, team_id, NULL::text AS task, NULL::timestamptz AS at
    FROM failed_team
    UNION ALL
    SELECT detail ->> 'error', NULL, detail ->> 'task', at
    FROM pdi2_migration.event
    WHERE what = 'task_failed' AND at >= %(since)s
      AND (detail ->> 'task' NOT LIKE 'team.%%'
           OR NOT %(alive)s AND NOT EXISTS (SELECT FROM failed_team))
      AND (%(until)s::timestamptz IS NULL OR at < %(until)s)
)
SELECT coalesce(substring(named FROM 'ClickHouse error [0-9]+ \([A-Z_0-9]+\)'),
                substring(named FROM '(ClickHouse|Postgres) does not answer')
                    || ' does not answer',
                left(regexp_replace(split_part(error, E'\n', 1), '\m[0-9]+([,.][0-9]+)*', 'N', 'g'), 200)) AS cause,
       count(DISTINCT team_id) AS teams,
       min(team_id) AS team_id,
       min(task) AS task,
       left(min(error), 2000) AS error
FROM failed
CROSS JOIN LATERAL (SELECT regexp_replace(error, '"([^"\\]|\\.)*"', '', 'g')) AS unquoted (named)
GROUP BY cause
ORDER BY coalesce(min(task), '') IN ('certify', 'switch_reads'), min(at) NULLS FIRST, teams DESC
LIMIT 10
