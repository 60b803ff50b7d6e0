-- Where no link is known, which is usual, ClickHouse reads no id for the last condition.
SELECT count()
FROM person_distinct_id
WHERE _timestamp > toDateTime({window_start:UInt32}) AND _timestamp <= toDateTime({window_end:UInt32}) AND _sign = 1
  AND ({known:Literal} = '' OR NOT has(/* include known_links */, /* include link_hash */))
