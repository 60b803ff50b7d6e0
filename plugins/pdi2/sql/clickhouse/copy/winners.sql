-- The latest event of a pair (id and person) decides whether it is live. Of an id's live pairs, the latest wins.
-- `winner` packs event and person into one number, which is much cheaper to compare than a tuple.
SELECT
/* include winning_row */
FROM (
    SELECT team_id, distinct_id, max(bitShiftLeft(toUInt256(last), 128) + reinterpretAsUInt128(person_id)) AS winner
    FROM (
        SELECT team_id, distinct_id, person_id, max(/* include moment */) AS last
        FROM {source:Identifier}
        WHERE /* include step_of_source */
        GROUP BY team_id, distinct_id, person_id
        HAVING bitAnd(last, 1) = 0
    )
    GROUP BY team_id, distinct_id
)
