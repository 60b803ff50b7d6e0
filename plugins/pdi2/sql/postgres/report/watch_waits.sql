-- Copies that wait for the server now: neither the end of the wait nor a finished slice came after it.
WITH latest AS (
    SELECT max(id) AS id
    FROM pdi2_migration.event
    WHERE at >= %(since)s AND what IN ('copy_waits', 'copy_put_off', 'copy_goes_on')
    GROUP BY detail -> 'team_id'
)
SELECT team.team_id, left(event.detail ->> 'reason', 1000) AS reason
FROM latest
JOIN pdi2_migration.event ON event.id = latest.id
JOIN pdi2_migration.team ON team.team_id = (event.detail ->> 'team_id')::bigint
WHERE event.what <> 'copy_goes_on'
  AND team.status = 'copying'
  AND NOT EXISTS (
      SELECT FROM pdi2_migration.slice WHERE slice.team_id = team.team_id AND slice.finished_at > event.at
  )
ORDER BY event.at
LIMIT 5
