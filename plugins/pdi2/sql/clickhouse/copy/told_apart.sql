-- Complex ids, and their rows.
SELECT count(), sum(rows)
FROM {complex_ids:Identifier}
