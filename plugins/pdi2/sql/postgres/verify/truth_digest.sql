-- One row per bucket: ids, the sum of their contents, the same times their versions; and the greatest row id and the sum
-- of row ids, of which the team's mark is made.
SELECT team_id, content & %(mask)s AS bucket, count(*), sum(content),
       coalesce(sum(content::numeric * version) FILTER (WHERE version > 0), 0), max(id), sum(id)
FROM (
/* include truth */
) AS truth
GROUP BY team_id, bucket
