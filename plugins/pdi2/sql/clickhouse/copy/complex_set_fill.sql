INSERT INTO {complex_set:Identifier} (id_hash)
SELECT id_hash
FROM {complex_ids:Identifier}
