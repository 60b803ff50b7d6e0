SELECT *, cityHash64(distinct_id)
FROM (
/* include winners */
)
