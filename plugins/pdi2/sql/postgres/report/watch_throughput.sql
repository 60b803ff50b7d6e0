-- Rows per bucket, which is `per_bucket` windows of `window` seconds since `began`, and the highest rate of any one
-- window. The rows of a piece of work are spread evenly over the time it took. Teams that shared statements ended at
-- the same time.
WITH work AS (
    SELECT 'copied' AS kind, finished_at AS ended, sum(rows_copied) AS rows, sum(seconds) AS seconds
    FROM pdi2_migration.slice
    WHERE finished_at >= %(since)s
    GROUP BY finished_at
    UNION ALL
    SELECT 'verified', verified_at, sum(rows_source), sum(coalesce(verify_seconds, 0))
    FROM pdi2_migration.team
    WHERE verified_at >= %(since)s AND status = 'verified'
    GROUP BY verified_at
),
timed AS (
    SELECT kind, rows / greatest(seconds, 0.001) AS per_second,
           greatest(extract(epoch FROM ended - %(began)s::timestamptz) - greatest(seconds, 0.001), 0)::double precision AS low,
           extract(epoch FROM ended - %(began)s::timestamptz)::double precision AS high
    FROM work
),
windows AS (
    SELECT kind, number,
           sum(per_second * (least(high, (number + 1) * %(window)s) - greatest(low, number * %(window)s))) AS rows
    FROM timed,
         generate_series(floor(low / %(window)s)::bigint, floor(high / %(window)s)::bigint) AS number
    GROUP BY kind, number
)
SELECT kind, (number / %(per_bucket)s)::int AS bucket, sum(rows)::double precision AS rows,
       max(rows)::double precision / %(window)s AS peak
FROM windows
GROUP BY kind, bucket
