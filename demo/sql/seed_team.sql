-- Ids are numbered across all teams. A team has the ids from first (included) to end (not included).
CREATE TABLE seed_team (team_id Int64, first UInt64, end UInt64) ENGINE = Memory
