-- A loose index scan over the unique index (team_id, distinct_id): one step per team, however many rows it has.
WITH RECURSIVE teams AS (
    (SELECT team_id FROM posthog_persondistinctid ORDER BY team_id LIMIT 1)
    UNION ALL
    SELECT (
        SELECT team_id FROM posthog_persondistinctid WHERE team_id > teams.team_id ORDER BY team_id LIMIT 1
    )
    FROM teams
    WHERE teams.team_id IS NOT NULL
)
SELECT team_id FROM teams WHERE team_id IS NOT NULL
