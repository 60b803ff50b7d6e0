-- The hashes of the links that are stamped later than now.
SELECT /* include link_hash */
FROM person_distinct_id
WHERE _timestamp > toDateTime({window_start:UInt32}) AND _timestamp <= toDateTime({window_end:UInt32}) AND _sign = 1
LIMIT {most:UInt32}
