-- LIGHTWEIGHT waits for parts to arrive, but not for merges.
SYSTEM SYNC REPLICA {table:Identifier} LIGHTWEIGHT
