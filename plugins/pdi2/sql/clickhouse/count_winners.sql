SELECT count()
FROM (
/* include winners */
)
