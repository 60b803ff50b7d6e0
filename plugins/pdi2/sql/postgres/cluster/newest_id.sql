-- The newest id, or the one in this row while it exists. By the primary key, because a look at every row for a newer
-- transaction takes minutes in a large table.
SELECT id, team_id, distinct_id
FROM posthog_persondistinctid
WHERE id = coalesce(
    (SELECT id FROM posthog_persondistinctid WHERE id = %(or_this)s),
    (SELECT max(id) FROM posthog_persondistinctid)
)
