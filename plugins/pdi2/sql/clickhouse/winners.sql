-- The latest event of a pair decides whether it is live, an unlink wins a tie; of the live pairs of an id the
-- latest wins. `last` packs time, offset and unlink into one number, and `winner` the person behind it: much cheaper to
-- compare than tuples.
-- The version is negative and grows with the time: any row of the application (0 and up) and any correction (-1)
-- beats it, and of two copies of an id the later event wins.
SELECT team_id,
       distinct_id,
       reinterpretAsUUID(toUInt128(winner)) AS person_id,
       0 AS is_deleted,
       toInt64(bitShiftRight(winner, 193)) - 4294967297 AS version,
       toUInt32(bitShiftRight(winner, 193)) AS _timestamp,
       toUInt64(bitShiftRight(winner, 129)) AS _offset,
       0 AS _partition
FROM (
    SELECT team_id, distinct_id, max(bitShiftLeft(toUInt256(last), 128) + reinterpretAsUInt128(person_id)) AS winner
    FROM (
        SELECT team_id, distinct_id, person_id, /* include last_event */ AS last
        FROM {complex_rows:Identifier}
        WHERE step = {step:UInt32}
        GROUP BY team_id, distinct_id, person_id
        HAVING bitAnd(last, 1) = 0
    )
    GROUP BY team_id, distinct_id
)
