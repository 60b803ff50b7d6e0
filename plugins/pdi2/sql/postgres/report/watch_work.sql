-- When the run's copying and verifying began and last made progress, their rows, and their rows in the last minutes. A
-- team takes time however small it is: `per_team` is what a line through the last minutes' teams gives one without rows;
-- null if they are too few.
WITH verified AS (
    SELECT rows_source, extract(epoch FROM verified_at - lag(verified_at) OVER (ORDER BY verified_at)) AS seconds
    FROM pdi2_migration.team
    WHERE verified_at >= greatest(%(since)s, now() - make_interval(secs => %(recent)s)) AND status = 'verified'
)
SELECT 'copied' AS kind,
       min(finished_at - make_interval(secs => seconds)) AS began,
       max(finished_at) AS ended,
       coalesce(sum(rows_copied), 0)::bigint AS rows,
       coalesce(sum(rows_copied) FILTER (WHERE finished_at > now() - make_interval(secs => %(recent)s)), 0)::bigint AS recent,
       NULL::double precision AS per_team
FROM pdi2_migration.slice
WHERE finished_at >= %(since)s
UNION ALL
SELECT 'verified',
       min(verified_at - make_interval(secs => coalesce(verify_seconds, 0))),
       max(verified_at),
       coalesce(sum(rows_source), 0)::bigint,
       coalesce(sum(rows_source) FILTER (WHERE verified_at > now() - make_interval(secs => %(recent)s)), 0)::bigint,
       (SELECT coalesce(regr_intercept(seconds, rows_source), avg(seconds)) FROM verified HAVING count(seconds) >= 5)
FROM pdi2_migration.team
WHERE verified_at >= %(since)s AND status = 'verified'
