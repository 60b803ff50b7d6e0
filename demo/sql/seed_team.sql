-- Ids are numbered through all teams; a team has those from first to before end.
CREATE TABLE seed_team (team_id Int64, first UInt64, end UInt64) ENGINE = Memory
