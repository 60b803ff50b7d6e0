-- How many complex ids there are, and how many rows they have.
SELECT count(), sum(rows)
FROM {complex_ids:Identifier}
