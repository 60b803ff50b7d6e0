-- Ids that were repaired by the team's last verification or later, up to `most` per team. The mark's time is ClickHouse's,
-- and its clock and Postgres's may differ.
SELECT team.team_id, repaired.distinct_id
FROM pdi2_migration.team
CROSS JOIN LATERAL (
    SELECT DISTINCT distinct_id
    FROM pdi2_migration.finding
    WHERE finding.team_id = team.team_id
      AND repaired
      AND found_at >= to_timestamp((team.mark ->> 'at')::bigint) - interval '10 minutes'
    LIMIT %(most)s
) AS repaired
WHERE team.team_id = ANY(%(team_ids)s)
