CREATE TABLE {complex_rows:Identifier} (
    distinct_id String, person_id UUID, team_id Int64, _sign Int8, _timestamp DateTime, _offset UInt64
)
ENGINE = MergeTree
ORDER BY tuple()
SETTINGS /* include never_merge */
