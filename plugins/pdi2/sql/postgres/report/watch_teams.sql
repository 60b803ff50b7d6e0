-- A page of the list of teams. It is sorted by a number, with nulls last in both directions.
WITH found AS (
    SELECT team_id, count(*) AS findings, count(*) FILTER (WHERE NOT repaired) AS remaining
    FROM pdi2_migration.finding
    GROUP BY team_id
),
chosen AS (
    SELECT team.team_id, status, rows_source, rows_copied, attempts, peak_memory, airflow_run, map_index, verified_at,
           left(error, 2000) AS error,
           rows_copied / nullif(copy_seconds, 0) AS speed,
           coalesce(findings, 0) AS findings,
           coalesce(remaining, 0) AS remaining
    FROM pdi2_migration.team
    LEFT JOIN found ON found.team_id = team.team_id
    WHERE (%(status)s::text IS NULL OR status = %(status)s)
      AND (%(search)s::text IS NULL OR starts_with(team.team_id::text, %(search)s) OR strpos(lower(error), lower(%(search)s)) > 0)
),
keyed AS (
    SELECT *, CASE %(sort)s
                  WHEN 'team_id' THEN team_id
                  WHEN 'status' THEN array_position(ARRAY['failed', 'copying', 'copied', 'planned', 'verified'], status)
                  WHEN 'rows' THEN rows_source
                  WHEN 'copied' THEN rows_copied
                  WHEN 'speed' THEN speed
                  WHEN 'attempts' THEN attempts
                  WHEN 'memory' THEN peak_memory
                  WHEN 'verified' THEN extract(epoch FROM verified_at)
                  WHEN 'findings' THEN findings
              END::double precision AS key
    FROM chosen
)
SELECT *, count(*) OVER () AS total
FROM keyed
ORDER BY CASE WHEN %(descending)s THEN key END DESC NULLS LAST,
         CASE WHEN NOT %(descending)s THEN key END NULLS LAST,
         team_id
LIMIT %(limit)s OFFSET %(offset)s
