-- Read twice from there, a step at a time, and not by looking through all ids again.
INSERT INTO {complex_rows:Identifier} (step, distinct_id, person_id, team_id, _sign, _timestamp, _offset)
SELECT /* include id_hash */ % {steps:UInt32}, distinct_id, person_id, team_id, _sign, _timestamp, _offset
FROM person_distinct_id
PREWHERE /* include slice_range */
     AND /* include id_hash */ IN (SELECT id_hash FROM {complex_ids:Identifier})
