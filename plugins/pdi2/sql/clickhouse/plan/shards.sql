-- Distributed tables that distribute the rows of our tables over several shards.
SELECT name, cluster, shards
FROM (
    SELECT name, extract(engine_full, '^Distributed\\(\'([^\']+)') AS cluster
    FROM system.tables
    WHERE engine = 'Distributed'
      AND match(engine_full, concat('\'', currentDatabase(), '\', \'person_distinct_id2?\''))
) AS fronts
INNER JOIN (
    SELECT cluster, uniqExact(shard_num) AS shards
    FROM system.clusters
    GROUP BY cluster
    HAVING shards > 1
) AS clusters USING (cluster)
ORDER BY name
LIMIT 1
