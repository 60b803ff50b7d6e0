-- Where Postgres stands: whatever a later look may show is of this transaction or of a newer one; and the team's rows.
SELECT txid_snapshot_xmin(txid_current_snapshot()), count(*), coalesce(sum(id), 0)::text, coalesce(max(id), 0)
FROM posthog_persondistinctid
WHERE team_id = %(team_id)s
