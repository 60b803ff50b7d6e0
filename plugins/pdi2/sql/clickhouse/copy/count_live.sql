-- How many ids winners.sql yields, by team. A hash is cheaper than the id. If two ids collide, the count is too low,
-- and the copy is then checked id by id.
SELECT team_id, uniqExact(id_hash)
FROM (
    SELECT team_id, cityHash64(distinct_id) AS id_hash, person_id, max(/* include moment */) AS last
    FROM {source:Identifier}
    WHERE /* include step_of_source */
    GROUP BY team_id, id_hash, person_id
    HAVING bitAnd(last, 1) = 0
)
GROUP BY team_id
