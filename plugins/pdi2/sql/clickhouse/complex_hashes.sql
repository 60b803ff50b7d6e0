SELECT reinterpretAsUInt64(substring(base64Decode($complex$), number * 8 + 1, 8))
FROM numbers({complex_count:UInt64})
