-- While the staging table is empty: refused where its parts could not become the new table's.
/* include staging_attach */
