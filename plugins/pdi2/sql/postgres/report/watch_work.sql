-- When the run's copying and verifying began and last made progress, their rows, and their rows in the last minutes.
SELECT 'copied' AS kind,
       min(finished_at - make_interval(secs => seconds)) AS began,
       max(finished_at) AS ended,
       coalesce(sum(rows_copied), 0)::bigint AS rows,
       coalesce(sum(rows_copied) FILTER (WHERE finished_at > now() - make_interval(secs => %(recent)s)), 0)::bigint AS recent
FROM pdi2_migration.slice
WHERE finished_at >= %(since)s
UNION ALL
SELECT 'verified',
       min(verified_at - make_interval(secs => coalesce(verify_seconds, 0))),
       max(verified_at),
       coalesce(sum(rows_source), 0)::bigint,
       coalesce(sum(rows_source) FILTER (WHERE verified_at > now() - make_interval(secs => %(recent)s)), 0)::bigint
FROM pdi2_migration.team
WHERE verified_at >= %(since)s AND status = 'verified'
