-- Rows of simple ids, once the others are extracted.
SELECT (SELECT count() FROM person_distinct_id WHERE /* include slice_range */)
     - (SELECT count() FROM {complex_rows:Identifier})
