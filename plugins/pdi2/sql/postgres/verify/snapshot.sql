-- Every row that is new to a later look was written by this transaction or by a newer one, on this server.
SELECT txid_snapshot_xmin(txid_current_snapshot()) AS xid, system_identifier::text AS server
FROM pg_control_system()
