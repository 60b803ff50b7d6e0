SELECT reinterpretAsUInt32(substring(base64Decode($complex$), number * 4 + 1, 4))
FROM numbers({complex_count:UInt64})
