-- Linked ids of the old table of which the new one has no row at all. Hashes of 64 bits are compared: among so few, no
-- two ids share one.
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
