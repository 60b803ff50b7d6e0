max(bitShiftLeft(toUInt128(toUnixTimestamp(_timestamp)), 65)
    + bitShiftLeft(toUInt128(_offset), 1) + (_sign < 0))
