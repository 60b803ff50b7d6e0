CREATE TABLE {complex_ids:Identifier} (id_hash UInt32, rows UInt64)
ENGINE = MergeTree
ORDER BY tuple()
SETTINGS /* include never_merge */
