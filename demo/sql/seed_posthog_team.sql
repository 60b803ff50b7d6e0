SELECT team_id AS id, concat('Team ', toString(team_id)) AS name FROM seed_team
