/* include slice_range */
AND /* include id_hash */ % {steps:UInt32} = {step:UInt32}
