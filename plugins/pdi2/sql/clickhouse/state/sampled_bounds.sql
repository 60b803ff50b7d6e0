-- Every so many rows of each part: for servers without mergeTreeIndex, and where the index is too coarse.
-- From anywhere in its beginning, for the first ids of a part are its least.
-- ClickHouse 23.6 knows no _part_offset in PREWHERE.
SELECT distinct_id, count() * {step:UInt64}
FROM person_distinct_id
PREWHERE /* include slice_range */
WHERE (_part_offset + cityHash64(_part)) % {step:UInt64} = 0
GROUP BY distinct_id
ORDER BY distinct_id
