-- Where nothing merges, an INSERT that is delayed or refused until merges catch up waits in vain.
max_bytes_to_merge_at_max_space_in_pool = 1, max_bytes_to_merge_at_min_space_in_pool = 1,
parts_to_delay_insert = 1000000, parts_to_throw_insert = 1000000
