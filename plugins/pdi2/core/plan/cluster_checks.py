"""Finds what makes a migration impossible on a cluster. docs/clusters.md says which clusters are supported, and why."""

import re
from contextlib import suppress
from functools import partial

from pdi2.core.cluster.ours import State, catch_up, problem_of, states
from pdi2.core.cluster.pressure import patiently
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import WaitError
from pdi2.core.state.slices import NEW_TABLE, OLD_TABLE

DISTRIBUTED = re.compile(r"Distributed\('(?P<cluster>[^']+)', '(?P<database>[^']*)', '(?P<table>[^']+)'")


def problems(warehouse: Warehouse) -> list[str]:
    """What makes a migration impossible on this cluster. If nothing does, our replica has caught up on return.

    Problems that may pass by themselves are watched for a while first.
    """
    found = [_shard_problem(*row) for row in warehouse.rows("shards")]
    if states(warehouse):
        with suppress(WaitError):
            patiently(partial(_passing, warehouse), "The check")
        now = states(warehouse)
        found += [problem for state in now if (problem := problem_of(state))] or unequal_replicas(now)
        found += balancer_problems(warehouse.servers())
    if not found:
        catch_up(warehouse)
    return found


def _passing(warehouse: Warehouse) -> str | None:
    return " ".join(problem_of(state) or "" for state in states(warehouse) if not state.is_forgotten).strip() or None


def unequal_replicas(states: list[State]) -> list[str]:
    """If one table is replicated to other servers than the other one, its namesake there is a table of its own."""
    names: dict[str, set[str]] = {OLD_TABLE: set(), NEW_TABLE: set()}
    names |= {state.table: {*state.there, *state.away} for state in states}
    old, new = names.values()
    if len({state.replica for state in states}) > 1 and len(old) == len(new):
        return []  # each table names its replicas itself, and our own has two names
    if old == new or max(len(old), len(new)) == 1:  # with a single replica, the other table may be a plain one
        return []
    told = " and ".join(f"{table} has {', '.join(sorted(there)) or 'none'}" for table, there in names.items())
    missing, elsewhere = sorted(names, key=lambda table: len(names[table]))
    return [
        f"The replicas of the two ClickHouse tables differ: {told}. On the others, {missing} is missing or a different "
        "table (another path in Keeper, or not replicated): its rows would not be copied, and its readers would miss "
        "those that are. Create it there again, at the path that system.replicas.zookeeper_path shows here. Nobody "
        "reads person_distinct_id2 yet, but save what person_distinct_id holds there first. If the others are gone for "
        f"good: SYSTEM DROP REPLICA '...' FROM TABLE {elsewhere}."
    ]


def balancer_problems(servers: set[str]) -> list[str]:
    if len(servers) < 2:
        return []
    return [
        f"The connection posthog_clickhouse leads to several replicas in turn ({', '.join(sorted(servers))}), of which "
        "one may lag behind the other. Name one replica as its host."
    ]


def _shard_problem(front: bytes, cluster: bytes, shards: int) -> str:
    return (
        f"The ClickHouse tables are one of {shards} shards: the Distributed table {front.decode()} on the cluster "
        f"{cluster.decode()} spreads the ids over them, and Postgres has them all. A migration over several shards "
        "is not supported. See docs/clusters.md."
    )


def engine_problem(table: str, engine: str, definition: str, wanted: str, by: str) -> str | None:
    """`engine` and `definition` (engine_full) are those of system.tables."""
    if re.match(rf"(Replicated)?{wanted}\((.*, )?{by}\)", definition):
        return None
    problem = f"ClickHouse table {table} has the engine {engine}, not {wanted}({by})"
    if found := DISTRIBUTED.match(definition):
        behind = f"{found['database']}.{found['table']} of the cluster {found['cluster']}"
        remedy = (
            f"Point posthog_clickhouse at the database {found['database']} of a replica there."
            if found["table"] == table
            else f"There the table must be called {table} too."
        )
        return (
            f"{problem}: it only forwards to {behind}, and takes neither a DELETE nor a slice's parts. {remedy} "
            "See docs/clusters.md."
        )
    if engine.startswith("Shared"):
        return (
            f"{problem}: ClickHouse Cloud may read another replica than it wrote to. It is not supported. "
            "See docs/clusters.md."
        )
    return f"{problem} or its replicated form. Name the table itself, not a view of it."
