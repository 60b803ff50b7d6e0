-- The copy of an id, unpacked from one number that holds its winning event and that event's person.
-- The version is negative and grows with time: any row of the application (0 and up) and any correction (-1) beats it,
-- and of two copies of an id the later event wins.
team_id,
distinct_id,
reinterpretAsUUID(toUInt128(winner)) AS person_id,
0 AS is_deleted,
toInt64(bitShiftRight(winner, 193)) - 4294967297 AS version,
toUInt32(bitShiftRight(winner, 193)) AS _timestamp,
toUInt64(bitShiftRight(winner, 129)) AS _offset,
{stamp:UInt64} AS _partition
