INSERT INTO {complex_ids:Identifier} (id_hash, rows)
SELECT id_hash, bitAnd(weight, 4294967295)
FROM (
/* include weights */
)
WHERE weight <> 1
