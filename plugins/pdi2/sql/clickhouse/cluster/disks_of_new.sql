-- The disks that the new table's parts go to: a part that finds no room on the first disk of its policy goes to the
-- next. Sums are floats, because object storage reports the largest integer as its free space.
SELECT storage_policy, sum(toFloat64(free_space)) AS free, sum(toFloat64(total_space)) AS total
FROM (
    SELECT policy_name AS storage_policy, arrayJoin(disks) AS name
    FROM system.storage_policies
    WHERE policy_name = (
        SELECT any(storage_policy)
        FROM system.tables
        WHERE database = currentDatabase() AND name = 'person_distinct_id2'
    )
) AS of_policy
INNER JOIN system.disks ON disks.name = of_policy.name
GROUP BY storage_policy
