CREATE TABLE {complex_rows:Identifier} (
    step UInt32, distinct_id String, person_id UUID, team_id Int64, _sign Int8, _timestamp DateTime, _offset UInt64
)
ENGINE = MergeTree
ORDER BY step
SETTINGS /* include never_merge */
