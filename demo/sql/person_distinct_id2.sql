CREATE TABLE person_distinct_id2
(
    team_id     Int64,
    distinct_id VARCHAR,
    person_id   UUID,
    is_deleted  Int8,
    version     Int64 DEFAULT 1,
    _timestamp  DateTime,
    _offset     UInt64,
    _partition  UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (team_id, distinct_id)
SETTINGS index_granularity = 512
