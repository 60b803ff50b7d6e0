SELECT kind, count(*) FILTER (WHERE repaired) AS repaired, count(*) FILTER (WHERE NOT repaired) AS remaining
FROM pdi2_migration.finding
WHERE found_at >= %(since)s AND team_id = ANY(%(team_ids)s)
GROUP BY kind
ORDER BY kind
