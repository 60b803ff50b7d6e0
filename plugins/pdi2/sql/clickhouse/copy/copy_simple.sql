-- Ids with a single link need no rule.
INSERT INTO {target:Identifier}
    (team_id, distinct_id, person_id, is_deleted, version, _timestamp, _offset, _partition)
SELECT team_id, distinct_id, person_id, 0, /* include copied_version */, _timestamp, _offset, {stamp:UInt64}
FROM person_distinct_id
WHERE /* include slice_range */
  AND /* include id_hash */ NOT IN {complex_set:Identifier}
