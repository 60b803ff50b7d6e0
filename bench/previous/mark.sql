-- Where Postgres stands, and the teams' rows. Every row that is new to a later look was written by this transaction or
-- by a newer one.
SELECT wanted.team_id, txid_snapshot_xmin(txid_current_snapshot()),
       count(mapping.id), coalesce(sum(mapping.id), 0)::text, coalesce(max(mapping.id), 0)
FROM unnest(%(team_ids)s::bigint[]) AS wanted (team_id)
LEFT JOIN posthog_persondistinctid AS mapping ON mapping.team_id = wanted.team_id
GROUP BY wanted.team_id
