SELECT team_id, left(distinct_id, 1000) AS distinct_id, kind, repaired, found_at, old, clickhouse, postgres, action,
       count(*) OVER () AS total
FROM pdi2_migration.finding
WHERE (%(team_id)s::bigint IS NULL OR team_id = %(team_id)s)
  AND (%(kind)s::text IS NULL OR kind = %(kind)s)
  AND (%(repaired)s::boolean IS NULL OR repaired = %(repaired)s)
  AND (%(search)s::text IS NULL OR strpos(distinct_id, %(search)s) > 0)
ORDER BY repaired, found_at DESC, team_id, hashtextextended(distinct_id, 0), kind
LIMIT %(limit)s OFFSET %(offset)s
