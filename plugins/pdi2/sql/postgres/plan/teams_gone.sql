SELECT team_id
FROM unnest(%(team_ids)s::bigint[]) AS wanted (team_id)
WHERE NOT EXISTS (SELECT FROM posthog_team WHERE posthog_team.id = wanted.team_id)
  AND NOT EXISTS (SELECT FROM posthog_persondistinctid AS mapping WHERE mapping.team_id = wanted.team_id)
ORDER BY team_id
