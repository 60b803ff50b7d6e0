CREATE TABLE {latest:Identifier} (
    team_id Int64, distinct_id String, rows UInt64, winner UInt256 CODEC(NONE),
    outcome Enum8('dead' = 0, 'live' = 1, 'undecided' = 2)
)
ENGINE = MergeTree
ORDER BY tuple()
SETTINGS /* include never_merge */
