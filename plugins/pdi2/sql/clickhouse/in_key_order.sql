-- Aggregating in key order holds a block of every part at once: small ones, or memory grows with the parts.
SETTINGS optimize_aggregation_in_order = 1, max_block_size = 8192
