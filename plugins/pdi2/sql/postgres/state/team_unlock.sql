SELECT pg_advisory_unlock(hashtextextended('pdi2_migration team', team_id))
FROM unnest(%(team_ids)s::bigint[]) AS taken (team_id)
