-- One row per bucket: how many ids a reader sees, the sum of their contents, the sum of contents times versions, how
-- many ids contradict themselves, and how many end in a tombstone of the application.
SELECT team_id, bitAnd(content, {mask:Int64}) AS bucket, countIf(deleted = 0), toString(sumIf(toInt128(content), deleted = 0)),
       toString(sumIf(toInt128(content) * newest, deleted = 0 AND newest > 0)), countIf(contradictory),
       countIf(deleted = 1 AND newest >= 0)
FROM (
/* include seen */
)
GROUP BY team_id, bucket
