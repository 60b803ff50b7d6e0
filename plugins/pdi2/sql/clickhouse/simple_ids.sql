/* include slice_range */
AND ({complex_count:UInt64} = 0 OR /* include id_hash */ NOT IN (/* include complex_hashes */))
