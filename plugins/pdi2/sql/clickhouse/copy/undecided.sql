INSERT INTO {complex_ids:Identifier} (id_hash, rows)
SELECT /* include id_hash */, rows
FROM {latest:Identifier}
WHERE outcome = 'undecided'
