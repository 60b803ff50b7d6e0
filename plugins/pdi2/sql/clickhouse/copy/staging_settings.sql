-- Writing compact parts takes half the memory of writing wide ones. The first merge makes them wide.
ALTER TABLE {target:Identifier}
    MODIFY SETTING /* include never_merge */, min_bytes_for_wide_part = 1000000000, min_rows_for_wide_part = 1000000000
