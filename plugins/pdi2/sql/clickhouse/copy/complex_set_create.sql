-- Kept in memory, and on disk in case the server restarts. Statements that read it have no PREWHERE, because ClickHouse
-- 23.6 refuses it there ("Duplicate set"); servers move conditions to PREWHERE by themselves.
CREATE TABLE {complex_set:Identifier} (id_hash UInt32)
ENGINE = Set
