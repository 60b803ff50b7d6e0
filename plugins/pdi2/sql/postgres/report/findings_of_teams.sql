SELECT kind, count(*) FILTER (WHERE repaired), count(*) FILTER (WHERE NOT repaired)
FROM pdi2_migration.finding
WHERE team_id = ANY(%(team_ids)s)
GROUP BY kind
ORDER BY kind
