-- A compare-and-set: it returns no row if somebody else has changed the status since it was last seen.
UPDATE posthog_asyncmigration
SET status = %(status)s,
    progress = coalesce(%(progress)s, progress),
    started_at = CASE WHEN %(status)s = 5 AND %(seen)s <> 5 THEN now() ELSE started_at END,
    finished_at = CASE WHEN %(status)s = 5 THEN NULL WHEN %(status)s = %(seen)s THEN finished_at ELSE now() END
WHERE name::text = %(name)s AND status = %(seen)s
RETURNING id
