UPDATE pdi2_migration.team
SET status = 'verified', old_differs = %(old_differs)s, mark = %(mark)s, digest = %(digest)s,
    truth_digest = %(truth_digest)s, verified_at = clock_timestamp(), error = NULL
WHERE team_id = %(team_id)s
