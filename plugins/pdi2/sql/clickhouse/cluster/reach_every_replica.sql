-- Takes nothing away. A mutation is done on a replica once all parts of before it are there, and this waits until it is
-- done on every active one, for up to 25 s (159); where one is away it says which (341).
ALTER TABLE person_distinct_id2 DELETE WHERE 0
SETTINGS mutations_sync = 2, max_execution_time = 25
