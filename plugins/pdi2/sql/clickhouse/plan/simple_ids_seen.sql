-- Run to measure how long detect_complex.sql takes, without writing anything.
SELECT countIf(weight = 1)
FROM (
/* include weights */
)
