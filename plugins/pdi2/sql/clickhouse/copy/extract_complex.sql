-- Each step reads the rows from this table, and need not look through all ids again.
INSERT INTO {complex_rows:Identifier} (distinct_id, person_id, team_id, _sign, _timestamp, _offset)
SELECT distinct_id, person_id, team_id, _sign, _timestamp, _offset
FROM person_distinct_id
PREWHERE /* include slice_range */
     AND /* include id_hash */ IN (SELECT id_hash FROM {complex_ids:Identifier})
