-- In memory, and on disk for a server that is restarted. What reads it has no PREWHERE, in which ClickHouse 23.6 refuses
-- it ("Duplicate set"): servers move conditions there by themselves.
CREATE TABLE {complex_set:Identifier} (id_hash UInt32)
ENGINE = Set
