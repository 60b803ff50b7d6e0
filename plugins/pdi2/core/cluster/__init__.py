"""Kindness to the cluster: waits while ClickHouse is busy, or its replicas lag or have no Keeper.

The tables are only read. Long waits are recorded in the ledger.
"""
