-- What remains different from Postgres, as much as a page can show; the table has all of it.
SELECT team_id, distinct_id, kind, clickhouse, postgres
FROM pdi2_migration.finding
WHERE NOT repaired
ORDER BY team_id, distinct_id, kind
LIMIT %(most)s
