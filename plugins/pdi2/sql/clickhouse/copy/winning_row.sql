-- The copy of an id, unpacked from one number that holds its winning event and that event's person.
team_id,
distinct_id,
reinterpretAsUUID(toUInt128(winner)) AS person_id,
0 AS is_deleted,
/* include copied_version */ AS version,
toUInt32(bitShiftRight(winner, 193)) AS _timestamp,
toUInt64(bitShiftRight(winner, 129)) AS _offset,
{stamp:UInt64} AS _partition
