-- One row per bucket: how many ids, the sum of their contents, the sum of contents times versions, and for the mark of
-- the team the greatest row id and the sum of row ids.
SELECT team_id, content & %(mask)s AS bucket, count(*), sum(content),
       coalesce(sum(content::numeric * version) FILTER (WHERE version > 0), 0), max(id), sum(id)
FROM (
/* include truth */
) AS truth
GROUP BY team_id, bucket
