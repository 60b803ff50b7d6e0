-- LIGHTWEIGHT waits for parts to arrive, but not for merges.
SYSTEM SYNC REPLICA person_distinct_id2 LIGHTWEIGHT
