-- The ids in the buckets that are flagged with 1 (49 in ASCII), in ClickHouse's order.
SELECT team_id, distinct_id, content, version
FROM (
/* include truth */
) AS truth
WHERE get_byte(%(flags)s::bytea, (content & %(mask)s)::int) = 49
ORDER BY team_id, distinct_id COLLATE "C"
