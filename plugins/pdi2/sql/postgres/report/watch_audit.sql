-- When the newest audit of every team after a switch at `switched_at` began, if neither it nor a later one left an id wrong.
SELECT (detail ->> 'since')::timestamptz AS since
FROM pdi2_migration.event
WHERE what = 'no_drift'
  AND (detail ->> 'every')::boolean
  AND (detail ->> 'since')::timestamptz >= %(switched_at)s
  AND NOT EXISTS (
      SELECT FROM pdi2_migration.finding WHERE NOT repaired AND found_at >= (detail ->> 'since')::timestamptz
  )
ORDER BY id DESC
LIMIT 1
