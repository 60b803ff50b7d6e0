-- Of these teams, or of all of them (null); since then, or ever (null).
SELECT kind, count(*) FILTER (WHERE repaired) AS repaired, count(*) FILTER (WHERE NOT repaired) AS remaining
FROM pdi2_migration.finding
WHERE (%(team_ids)s::bigint[] IS NULL OR team_id = ANY(%(team_ids)s))
  AND (%(since)s::timestamptz IS NULL OR found_at >= %(since)s)
GROUP BY kind
ORDER BY kind
