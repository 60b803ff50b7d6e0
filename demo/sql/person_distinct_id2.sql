-- As in PostHog 1.31 to 1.33. Boolean is Int8 before ClickHouse 21.12, and Bool since then.
CREATE TABLE person_distinct_id2
(
    team_id     Int64,
    distinct_id VARCHAR,
    person_id   UUID,
    is_deleted  Boolean,
    version     Int64 DEFAULT 1,
    _timestamp  DateTime,
    _offset     UInt64,
    _partition  UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (team_id, distinct_id)
SETTINGS index_granularity = 512
