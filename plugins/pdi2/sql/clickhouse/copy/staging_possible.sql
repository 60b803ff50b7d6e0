-- While the staging table is empty: refused where its parts could not become the new table's. Nobody is waited for.
/* include staging_attach */
SETTINGS replication_alter_partitions_sync = 0
