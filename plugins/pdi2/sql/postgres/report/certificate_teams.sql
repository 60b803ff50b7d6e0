WITH found AS (
    SELECT team_id, count(*) FILTER (WHERE repaired) AS repaired, count(*) FILTER (WHERE NOT repaired) AS remaining
    FROM pdi2_migration.finding
    GROUP BY team_id
)
SELECT team.team_id, status, rows_source, rows_copied, slices_done, attempts, copy_seconds, peak_memory, copied_at,
       verified_at, digest, truth_digest, old_differs, coalesce(repaired, 0) AS findings_repaired,
       coalesce(remaining, 0) AS findings_remaining, error
FROM pdi2_migration.team
LEFT JOIN found ON found.team_id = team.team_id
ORDER BY rows_source DESC, team.team_id
