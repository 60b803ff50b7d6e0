SELECT person_number + 1 AS id, min(times[1]) AS created_at, any(persons[owner]) AS uuid, any(team_id) AS team_id
FROM seed_id
INNER JOIN seed_history USING (kind)
WHERE owner != 0
GROUP BY person_numbers[owner] AS person_number
ORDER BY id
