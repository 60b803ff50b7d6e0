SELECT floor(extract(epoch FROM finished_at - %(began)s) / %(width)s)::int AS bucket, sum(rows_copied)::bigint AS rows
FROM pdi2_migration.slice
WHERE finished_at >= %(began)s
GROUP BY bucket
ORDER BY bucket
