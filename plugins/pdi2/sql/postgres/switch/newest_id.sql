-- By its primary key, because a look at every row for a newer transaction takes minutes in a large table.
SELECT id, team_id, distinct_id
FROM posthog_persondistinctid
ORDER BY id DESC
LIMIT 1
