SELECT reinterpretAsUInt32(substring(unhex($complex$), number * 4 + 1, 4))
FROM numbers({complex_count:UInt64})
