/* include slice_range */
AND ({every_id:Bool} OR /* include id_hash */ IN (/* include complex_hashes */))
