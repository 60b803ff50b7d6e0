-- As in PostHog since 1.34, with what later releases added and dropped.
CREATE TABLE person_distinct_id2
(
    team_id     Int64,
    distinct_id VARCHAR,
    person_id   UUID,
    is_deleted  Int8,
    version     Int64,
    _timestamp  DateTime,
    _offset     UInt64,
    _partition  UInt64,
    INDEX kafka_timestamp_minmax_person_distinct_id2 _timestamp TYPE minmax GRANULARITY 3
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (team_id, distinct_id)
SETTINGS index_granularity = 512
