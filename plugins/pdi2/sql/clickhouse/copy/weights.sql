-- An id with exactly one link and no unlink needs no rule: its weight is 1. Every other hash, that of an id with
-- several rows or of two ids that collide, goes the careful way. The lower half of a weight counts rows.
SELECT /* include id_hash */ AS id_hash, sum(if(_sign = 1, 1, 4294967297)) AS weight
FROM person_distinct_id
WHERE /* include slice_range */
GROUP BY id_hash
