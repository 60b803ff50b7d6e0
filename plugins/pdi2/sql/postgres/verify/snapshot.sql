-- Every row that is new to a later look was written by this transaction or by a newer one.
SELECT txid_snapshot_xmin(txid_current_snapshot())
