-- The newest row of each id, and whether another row of the same version contradicts it: a reader sees one of them by
-- chance. A row is packed into one number: version, then whether it is a tombstone, then the person. So one GROUP BY
-- yields both the greatest and the least row of the newest version. `content` is the same hash as in truth.sql of
-- Postgres: the first 8 bytes of SHA-256 over the 16 bytes of the person and the id.
SELECT team_id, distinct_id, greatest_row <> least_row AS contradictory,
       toUInt8(bitShiftRight(greatest_row, 128)) AS deleted,
       reinterpretAsInt64(bitXor(toUInt64(bitShiftRight(greatest_row, 192)), 9223372036854775808)) AS newest,
       reinterpretAsInt64(reverse(substring(SHA256(concat(
           UUIDStringToNum(toString(reinterpretAsUUID(toUInt128(greatest_row)))), distinct_id)), 1, 8))) AS content
FROM (
    WITH toUInt256(bitShiftLeft(toUInt256(1), 192) - 1) AS but_the_version
    SELECT team_id, distinct_id, max(packed) AS greatest_row,
           bitXor(max(bitXor(packed, but_the_version)), but_the_version) AS least_row
    FROM (
        SELECT team_id, distinct_id,
               bitShiftLeft(toUInt256(bitXor(reinterpretAsUInt64(version), 9223372036854775808)), 192)
               + bitShiftLeft(toUInt256(is_deleted), 128) + reinterpretAsUInt128(person_id) AS packed
        FROM person_distinct_id2
        WHERE /* include slice_range */
          AND version >= {least_version:Int64}
    )
    GROUP BY team_id, distinct_id
)
