-- Whatever a later look may show is of this transaction or of a newer one.
SELECT txid_snapshot_xmin(txid_current_snapshot())
