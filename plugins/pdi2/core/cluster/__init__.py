"""Kindness to the cluster: waits while ClickHouse is busy, or its replicas lag or have no Keeper. Changes nothing."""
