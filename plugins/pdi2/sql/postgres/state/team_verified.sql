-- Teams that were verified together have the same verified_at, and the sum of their seconds is how long it took.
UPDATE pdi2_migration.team
SET status = 'verified', old_differs = verified.old_differs, mark = verified.mark, digest = verified.digest,
    truth_digest = verified.truth_digest, tombstones = verified.tombstones, verify_seconds = verified.seconds,
    verified_at = statement_timestamp(), error = NULL
FROM jsonb_to_recordset(%(teams)s)
    AS verified (team_id bigint, old_differs bigint, mark jsonb, digest text, truth_digest text, tombstones bigint,
                 seconds double precision)
WHERE team.team_id = verified.team_id
