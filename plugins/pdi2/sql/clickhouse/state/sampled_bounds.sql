-- One id out of every `step` rows of each part, for servers without mergeTreeIndex or with too coarse an index.
-- Each part starts at a different offset, because the first ids of a part are its lowest.
-- ClickHouse 23.6 does not know _part_offset in PREWHERE.
SELECT distinct_id, count() * {step:UInt64}
FROM {table:Identifier}
PREWHERE /* include slice_range */
WHERE (_part_offset + cityHash64(_part)) % {step:UInt64} = 0
GROUP BY distinct_id
ORDER BY distinct_id
