-- With the team, because several teams may share a statement and have the same id.
toUInt32(cityHash64(team_id, distinct_id))
