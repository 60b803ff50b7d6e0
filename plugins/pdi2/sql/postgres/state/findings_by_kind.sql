SELECT kind, count(*) FILTER (WHERE repaired) AS repaired, count(*) FILTER (WHERE NOT repaired) AS remaining
FROM pdi2_migration.finding
GROUP BY kind
ORDER BY kind
