-- An id with exactly one link and no unlink needs no rule: its weight is 1. Every other hash belongs to an id with
-- several rows, or to two ids that collide, and is handled by the rule. The lower half of a weight counts rows.
SELECT /* include id_hash */ AS id_hash, sum(if(_sign = 1, 1, 4294967297)) AS weight
FROM person_distinct_id
WHERE /* include slice_range */
GROUP BY id_hash
