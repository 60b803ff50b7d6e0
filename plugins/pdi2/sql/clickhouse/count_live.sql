-- How many ids winners.sql yields. A hash in place of the id is cheaper; where two ids collide the count is short,
-- and the copy is then checked id by id.
SELECT uniqExact(id_hash)
FROM (
    SELECT cityHash64(distinct_id) AS id_hash, person_id, /* include last_event */ AS last
    FROM person_distinct_id
    PREWHERE /* include slice_range */
         AND ({every_id:Bool} OR toUInt32(cityHash64(distinct_id)) IN (/* include complex_hashes */))
    GROUP BY id_hash, person_id
    HAVING bitAnd(last, 1) = 0
)
