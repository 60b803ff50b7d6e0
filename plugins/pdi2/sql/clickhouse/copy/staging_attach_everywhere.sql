-- Waits up to 25 s for the other active replicas to fetch the rows, because one that cannot fetch them would hold this
-- up for ever. It does not wait for replicas that are away. The first setting has its name from before ClickHouse 23,
-- which later releases know too.
/* include staging_attach */
SETTINGS replication_alter_partitions_sync = 2, replication_wait_for_inactive_replica_timeout = 0, max_execution_time = 25
