"""Replicas and shards: waiting for the connection's replica, and what a migration cannot run on.

docs/clusters.md has the design and its reasons. The settings that replicas need go with every statement: CONSISTENT
in clickhouse.py.
"""

import re

from pdi2.core.clickhouse import Warehouse

SYNC = {"person_distinct_id": "sync_old", "person_distinct_id2": "sync_new"}
DISTRIBUTED = re.compile(r"Distributed\('(?P<cluster>[^']+)', '(?P<database>[^']*)', '(?P<table>[^']+)'")


def catch_up(warehouse: Warehouse) -> None:
    """Returns when the connection's replica has all that was inserted into either table, on any replica, before now.

    Raises ClickHouse's timeout (159) where that takes longer than its receive_timeout.
    """
    for table, *_ in warehouse.rows("replicas"):
        warehouse.execute(SYNC[table.decode()])


def problems(warehouse: Warehouse) -> list[str]:
    """What a cluster has that no migration can run on. Where there is nothing, its replica has caught up."""
    found = [_shard_problem(*row) for row in warehouse.rows("shards")]
    if replicas := warehouse.rows("replicas"):
        found += [problem for replica in replicas if (problem := replica_problem(*replica))]
        found += balancer_problems(warehouse.servers())
    if not found:
        catch_up(warehouse)
    return found


def replica_problem(table: bytes, is_readonly: int, active: int, total: int) -> str | None:
    if is_readonly:
        return f"ClickHouse table {table.decode()} is read-only: its replica has lost Keeper. Bring Keeper back first."
    if active < (majority := total // 2 + 1):
        return (
            f"Of ClickHouse table {table.decode()} {active} of {total} replicas are active, and an insert waits for "
            f"{majority}. Start the others, or drop those that are gone for good (SYSTEM DROP REPLICA)."
        )
    return None


def balancer_problems(servers: set[str]) -> list[str]:
    if len(servers) < 2:
        return []
    return [
        f"The connection posthog_clickhouse leads to several replicas in turn ({', '.join(sorted(servers))}), of which "
        "one may lag behind what the other was told. Name one replica as its host."
    ]


def _shard_problem(front: bytes, cluster: bytes, shards: int) -> str:
    return (
        f"The ClickHouse tables are one of {shards} shards: the Distributed table {front.decode()} on the cluster "
        f"{cluster.decode()} shares ids out among them, and Postgres knows them all. A migration over several shards "
        "is not supported. See docs/clusters.md."
    )


def engine_problem(table: str, engine: str, definition: str, wanted: str, by: str) -> str | None:
    """`engine` and `definition` (engine_full) are those of system.tables."""
    if re.match(rf"(Replicated)?{wanted}\((.*, )?{by}\)", definition):
        return None
    problem = f"ClickHouse table {table} has the engine {engine}, not {wanted}({by})"
    if found := DISTRIBUTED.match(definition):
        return (
            f"{problem}: it stands before {found['database']}.{found['table']} of the cluster {found['cluster']}. "
            "Point posthog_clickhouse at a database where the tables themselves have these names. See docs/clusters.md."
        )
    if engine.startswith("Shared"):
        return (
            f"{problem}: ClickHouse Cloud may read another replica than it wrote. It is not supported. "
            "See docs/clusters.md."
        )
    return f"{problem} or its replicated form. Name the table itself, not a view of it."
