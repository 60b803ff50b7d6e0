-- When an event happened, as one number: time, then offset, then whether it is an unlink, which wins a tie.
bitShiftLeft(toUInt128(toUnixTimestamp(_timestamp)), 65) + bitShiftLeft(toUInt128(_offset), 1) + (_sign < 0)
