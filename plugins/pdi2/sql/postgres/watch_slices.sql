-- When the run's copying began and went on last, and the rows of the last minutes.
SELECT min(finished_at - make_interval(secs => seconds)) AS began,
       max(finished_at) AS ended,
       sum(rows_copied)::bigint AS rows,
       coalesce(sum(rows_copied) FILTER (WHERE finished_at > now() - make_interval(secs => %(recent)s)), 0)::bigint AS recent
FROM pdi2_migration.slice
WHERE finished_at >= %(since)s
