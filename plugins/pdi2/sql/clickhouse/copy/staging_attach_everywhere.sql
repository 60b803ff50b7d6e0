-- The other replicas that are active fetch it, as far as they do within 25 s: one that cannot would hold this up for ever.
-- One that is away does not. The first setting's name is that of before ClickHouse 23, and known since too.
/* include staging_attach */
SETTINGS replication_alter_partitions_sync = 2, replication_wait_for_inactive_replica_timeout = 0, max_execution_time = 25
