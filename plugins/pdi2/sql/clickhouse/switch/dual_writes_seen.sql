SELECT count()
FROM person_distinct_id
WHERE _timestamp > toDateTime({window_start:UInt32}) AND _timestamp <= toDateTime({window_end:UInt32}) AND _sign = 1
  AND NOT has(/* include known_links */, /* include link_hash */)
