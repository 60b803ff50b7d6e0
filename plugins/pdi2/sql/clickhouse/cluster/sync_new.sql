-- LIGHTWEIGHT waits for parts to arrive, and not for merges.
SYSTEM SYNC REPLICA person_distinct_id2 LIGHTWEIGHT
