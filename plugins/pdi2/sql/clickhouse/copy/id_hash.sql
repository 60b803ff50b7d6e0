-- Ids of several teams may share a statement, and be the same.
toUInt32(cityHash64(team_id, distinct_id))
