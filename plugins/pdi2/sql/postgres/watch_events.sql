SELECT id, at, actor, what, left((detail - 'known')::text, 4000) AS detail, count(*) OVER () AS total
FROM pdi2_migration.event
WHERE %(team_id)s::bigint IS NULL OR (detail ->> 'team_id')::bigint = %(team_id)s
ORDER BY id DESC
LIMIT %(limit)s OFFSET %(offset)s
