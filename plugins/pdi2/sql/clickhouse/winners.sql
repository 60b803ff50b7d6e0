-- The latest event of a pair decides whether it is live, an unlink wins a tie; of the live pairs of an id the
-- latest wins. `last` packs time, offset and unlink into one number: much cheaper to compare than a tuple.
-- The version is negative and grows with the time: any row of the application (0 and up) and any correction (-1)
-- beats it, and of two copies of an id the later event wins.
SELECT team_id,
       distinct_id,
       winner.2 AS person_id,
       0 AS is_deleted,
       toInt64(bitShiftRight(winner.1, 65)) - 4294967297 AS version,
       toUInt32(bitShiftRight(winner.1, 65)) AS _timestamp,
       toUInt64(bitAnd(bitShiftRight(winner.1, 1), toUInt128(18446744073709551615))) AS _offset,
       0 AS _partition
FROM (
    SELECT team_id, distinct_id, max((last, person_id)) AS winner
    FROM (
        SELECT team_id, distinct_id, person_id, /* include last_event */ AS last
        FROM person_distinct_id
        PREWHERE /* include ruled_ids */
        GROUP BY team_id, distinct_id, person_id
        HAVING bitAnd(last, 1) = 0
    )
    GROUP BY team_id, distinct_id
)
