-- Takes each team's lock if nobody has it. Held until it is given back, or the session ends.
SELECT team_id, pg_try_advisory_lock(hashtextextended('pdi2_migration team', team_id)) AS taken
FROM unnest(%(team_ids)s::bigint[]) AS wanted (team_id)
