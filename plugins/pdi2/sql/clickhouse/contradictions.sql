-- Rows of one id and one version that say different things: a digest sees one of them by chance.
SELECT DISTINCT team_id, distinct_id
FROM (
    SELECT team_id, distinct_id
    FROM person_distinct_id2
    WHERE /* include slice_range */
    GROUP BY team_id, distinct_id, version
    HAVING min(person_id) <> max(person_id) OR min(is_deleted) <> max(is_deleted)
)
