-- One row per distinct_id: which history it has, with which persons and at which times.
CREATE TABLE seed_id
(
    n              UInt64,
    team_id        Int64,
    kind           LowCardinality(String),
    distinct_id    String,
    person_numbers Array(UInt64),
    persons        Array(UUID),
    times          Array(DateTime)
)
ENGINE = MergeTree
ORDER BY n
