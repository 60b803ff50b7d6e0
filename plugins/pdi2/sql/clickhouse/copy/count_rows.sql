SELECT count()
FROM {table:Identifier}
WHERE /* include slice_range */
