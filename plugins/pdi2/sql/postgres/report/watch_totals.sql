-- Totals by status.
SELECT status,
       count(*) AS teams,
       sum(rows_source)::bigint AS rows_source,
       sum(CASE WHEN status IN ('copied', 'verified') THEN rows_source ELSE least(rows_copied, rows_source) END)::bigint
           AS rows_done,
       sum(rows_source + 1)::bigint AS work,
       (/* include work_done */)::double precision AS work_done,
       sum(slices_done)::bigint AS slices,
       max(peak_memory) AS peak_memory,
       sum(old_differs)::bigint AS old_differs,
       max(copied_at) AS copied_at,
       max(verified_at) AS verified_at
FROM pdi2_migration.team
WHERE %(team_ids)s::bigint[] IS NULL OR team_id = ANY(%(team_ids)s)
GROUP BY status
