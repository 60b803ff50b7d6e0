-- What stays different from Postgres, as far as a page can show it; the whole is in the table.
SELECT team_id, distinct_id, kind, clickhouse, postgres
FROM pdi2_migration.finding
WHERE NOT repaired
ORDER BY team_id, distinct_id, kind
LIMIT %(most)s
