-- Linked ids of the old table that have no row at all in the new one. They are compared by hashes of 64 bits: with so
-- few ids, no two share a hash.
INSERT INTO {complex_ids:Identifier} (id_hash, rows)
SELECT /* include id_hash */ AS id_hash, count()
FROM person_distinct_id
PREWHERE /* include slice_range */
WHERE _sign = 1 AND cityHash64(team_id, distinct_id) NOT IN (
    SELECT cityHash64(team_id, distinct_id)
    FROM person_distinct_id2
    WHERE /* include slice_range */
)
GROUP BY id_hash
