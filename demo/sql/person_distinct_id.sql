CREATE TABLE person_distinct_id
(
    distinct_id VARCHAR,
    person_id   UUID,
    team_id     Int64,
    _sign       Int8 DEFAULT 1,
    is_deleted  Int8 ALIAS if(_sign = -1, 1, 0),
    _timestamp  DateTime,
    _offset     UInt64
)
ENGINE = CollapsingMergeTree(_sign)
ORDER BY (team_id, distinct_id, person_id)
