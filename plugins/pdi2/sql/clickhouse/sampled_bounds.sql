-- Every so many rows of each part: for servers without mergeTreeIndex, and where the index is too coarse.
-- ClickHouse 23.6 knows no _part_offset in PREWHERE.
SELECT distinct_id, count() * {step:UInt64}
FROM person_distinct_id
PREWHERE /* include slice_range */
WHERE _part_offset % {step:UInt64} = 0
GROUP BY distinct_id
ORDER BY distinct_id
