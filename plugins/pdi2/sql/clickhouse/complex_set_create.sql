-- In memory, and on disk for a server that is restarted.
CREATE TABLE {complex_set:Identifier} (id_hash UInt32)
ENGINE = Set
