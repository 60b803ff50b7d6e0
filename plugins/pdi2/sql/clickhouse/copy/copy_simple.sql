-- Ids with a single link need no rule. The version is computed as in winning_row.sql.
INSERT INTO {target:Identifier}
    (team_id, distinct_id, person_id, is_deleted, version, _timestamp, _offset, _partition)
SELECT team_id, distinct_id, person_id, 0, toInt64(toUnixTimestamp(_timestamp)) - 4294967297, _timestamp, _offset,
       {stamp:UInt64}
FROM person_distinct_id
WHERE /* include slice_range */
  AND /* include id_hash */ NOT IN {complex_set:Identifier}
