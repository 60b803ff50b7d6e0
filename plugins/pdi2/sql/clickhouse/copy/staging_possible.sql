-- A trial while the staging table is empty: ClickHouse refuses it if its parts could not become parts of the new table.
-- It waits for no replica.
/* include staging_attach */
SETTINGS replication_alter_partitions_sync = 0
