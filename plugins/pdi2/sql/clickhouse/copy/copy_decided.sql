INSERT INTO {target:Identifier}
    (team_id, distinct_id, person_id, is_deleted, version, _timestamp, _offset, _partition)
SELECT
/* include winning_row */
FROM {latest:Identifier}
WHERE outcome = 'live'
