-- Deletes nothing. A mutation is done on a replica once all earlier parts are there. This waits for up to 25 s until
-- it is done on every active replica (else 159). If a replica is away, the error names it (341).
ALTER TABLE person_distinct_id2 DELETE WHERE 0
SETTINGS mutations_sync = 2, max_execution_time = 25
