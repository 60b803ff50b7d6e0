"""All replicas of the new table: what the others lack, and the wait for them before readers may ask them.

docs/clusters.md explains the design. The settings that replicas need are sent with every statement: see CONSISTENT in
clickhouse.py.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError

from pdi2.core.cluster.ours import TIMED_OUT, UNREADABLE, State, catch_up, follow, states
from pdi2.core.cluster.pressure import patiently
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import MigrationError, WaitError, describe
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.slices import NEW_TABLE, OLD_TABLE
from pdi2.core.state.words import counted

UNFINISHED = 341
SWITCH_WAITS, SWITCH_WAITED = "switch_waits", "switch_waited"
"""Both events carry the time when the wait began. The second one ends it."""
AWAY = f"ClickHouse shows no replica or no part of {NEW_TABLE}, as while somebody restarts or detaches the table."
PATIENCE_SECONDS = 1800
"""How long a wait for the replicas at the switch may take, however often the task is put off meanwhile."""


class ReplicaError(MigrationError):
    """Some replica does not receive what was copied; reads stay on the old table."""


@dataclass(frozen=True)
class Replica:
    """A replica of the new table, as Keeper shows it.

    `lacks` counts the parts that the replica we are connected to has and this one does not. It is None if that is not
    known, because we cannot read that in Keeper.
    """

    name: str
    active: bool
    here: bool
    lacks: int | None


def survey(warehouse: Warehouse) -> list[Replica]:
    """What is known now about the new table's replicas; empty if the table is not replicated."""
    return [one for state in _of_new(warehouse) for one in _look(warehouse, state, parts_of(warehouse))]


def explained(warehouse: Warehouse, error: Exception) -> str:
    """What ClickHouse says of a wait for other replicas that was in vain, and which replicas it waited for: it names
    none."""
    try:
        found = survey(warehouse)
    except (ClickHouseError, WaitError) as another:
        return f"{describe(error)} Which replicas are behind is not known: {describe(another)}"
    return " ".join([describe(error), *(_lag(one) for one in found if one.lacks != 0 or not one.active)])


def behind(warehouse: Warehouse) -> list[str]:
    """Which replicas do not get what ours has, after a wait for what is on its way. Those we cannot know of are left
    out."""
    with suppress(WaitError):
        once_everywhere(warehouse, "The look at the other replicas")
    return [_lag(one) for one in survey(warehouse) if one.lacks or not one.active]


def wait_for_all(ledger: Ledger, warehouse: Warehouse) -> list[dict[str, Any]]:
    """Waits until every replica has all the parts of the new table that ours has now; returns the replicas.

    Every replica counts, because a reader may ask any of them, and one that is away now may come back: with an older
    disk perhaps, which Keeper does not know. The list is empty if the table is not replicated. Raises WaitError if the
    wait is long, ReplicaError if it is too long.

    If a failover has led us to another replica meanwhile, what was verified may be lost: see `follow`.
    """
    catch_up(warehouse, [NEW_TABLE])
    follow(ledger, warehouse)
    since = _waits_since(ledger) or time.time()
    try:
        found = once_everywhere(
            warehouse, "The switch", lambda _, reason: ledger.record(SWITCH_WAITS, reason=reason, since=since)
        )
    except WaitError as wait:
        if time.time() - since > PATIENCE_SECONDS:
            end_wait(ledger)
            raise ReplicaError(
                "The switch was given up, because some replica lacks what is copied and verified, or is away. "
                f"{wait} Reads stay on the old table. Repair the replica and trigger the run again: only the switch is "
                "left."
            ) from wait
        raise
    end_wait(ledger)
    return [asdict(one) for one in found]


def once_everywhere(warehouse: Warehouse, what: str, record: Callable[..., None] | None = None) -> list[Replica]:
    """Returns the replicas once each of them has all the parts of the new table that ours has now."""
    is_replicated = any(replicated for *_, replicated in warehouse.rows("new_table"))
    parts = parts_of(warehouse)
    found: list[Replica] = []

    def look() -> str | None:
        found.clear()
        ours = _of_new(warehouse)
        if is_replicated and not ours:
            return AWAY
        for state in ours:
            found.extend(_look(warehouse, state, parts, or_wait=True))
        return " ".join(_lag(one) for one in found if one.lacks != 0 or not one.active) or None

    patiently(look, what, record)
    return found


def end_wait(ledger: Ledger) -> None:
    """Ends a recorded wait, so that the next one begins with full patience."""
    if since := _waits_since(ledger):
        ledger.record(SWITCH_WAITED, since=since)


def _waits_since(ledger: Ledger) -> float | None:
    begun, ended = (ledger.latest_of_run(what) or {"since": None} for what in (SWITCH_WAITS, SWITCH_WAITED))
    return None if begun["since"] == ended["since"] else begun["since"]


def _of_new(warehouse: Warehouse) -> list[State]:
    return [state for state in states(warehouse) if state.table == NEW_TABLE]


def parts_of(warehouse: Warehouse) -> set[str]:
    """The names of the new table's parts. Raises WaitError if ClickHouse shows none though the table has rows."""
    parts = _names(warehouse.rows("parts_of_new"))
    if not parts and warehouse.rows("new_is_filled")[0][0]:
        raise WaitError(AWAY)
    return parts


def _look(warehouse: Warehouse, state: State, parts: set[str], or_wait: bool = False) -> list[Replica]:
    """All registered replicas, with how many of these parts each lacks.

    If we cannot read that in Keeper, the number is not known; with `or_wait`, ClickHouse then waits for all replicas.
    """
    if state.is_cut_off or state.is_forgotten:  # a look into Keeper would take minutes
        return [Replica(state.replica, active=False, here=True, lacks=None)]
    others = f"{state.keeper_path}/replicas"
    try:
        names = sorted(_names(warehouse.rows("in_keeper", {"path": others})))
        there = {name: _names(warehouse.rows("in_keeper", {"path": f"{others}/{name}/parts"})) for name in names}
    except DatabaseError as error:
        if error.code not in UNREADABLE:
            raise
        return _look_without_keeper(warehouse, state, or_wait)
    if state.replica not in there:  # system.zookeeper shows the default Keeper, not an auxiliary one ('aux:/path')
        return _look_without_keeper(warehouse, state, or_wait)
    return [Replica(name, name not in state.away, name == state.replica, lacking(parts, there[name])) for name in names]


def _look_without_keeper(warehouse: Warehouse, state: State, wait: bool) -> list[Replica]:
    lacks = None
    if wait and not state.away:  # else the switch waits anyway, and each look would add a mutation to the queues
        try:
            warehouse.execute("reach_every_replica")
            lacks = 0
        except DatabaseError as error:
            # A mutation that failed, was killed, or did not wait for a replica that went away only now is unfinished
            # too, and proves nothing (ClickHouse's StorageReplicatedMergeTree::waitMutationToFinishOnReplicas).
            if error.code not in (TIMED_OUT, UNFINISHED):
                raise
    others = sorted(set(state.there) - {state.replica})
    if lacks is None and others:
        others = [" or ".join(others)]
    return [
        Replica(state.replica, active=True, here=True, lacks=0),
        *(Replica(name, active=False, here=False, lacks=None) for name in state.away),
        *(Replica(name, active=True, here=False, lacks=lacks) for name in others),
    ]


def _names(rows: Iterable[tuple[Any, ...]]) -> set[str]:
    return {name.decode() for (name,) in rows}


def lacking(parts: set[str], there: set[str]) -> int:
    """How many of the parts are not there: neither themselves, nor their blocks in others, smaller or larger.

    Merges and mutations cut the same rows into other parts. A block counts only in a part that has every mutation of
    the missing one.
    """
    ordered = sorted(map(_extent, there))
    return sum(not _filled(_extent(name), ordered) for name in parts - there)


def _extent(part: str) -> tuple[str, int, int, int]:
    """Partition, first block, last block and mutation of a name like all_0_5_1_8 (ClickHouse's MergeTreePartInfo)."""
    partition, first, last, _level, *mutation = part.split("_")
    return partition, int(first), int(last), int(mutation[0]) if mutation else 0


def _filled(part: tuple[str, int, int, int], ordered: Iterable[tuple[str, int, int, int]]) -> bool:
    """Whether these parts, ordered by their first block, have every block of the part."""
    partition, needed, last, mutation = part
    for other in ordered:
        if other[0] == partition and other[1] <= needed and other[3] >= mutation:
            needed = max(needed, other[2] + 1)
    return needed > last


def _lag(replica: Replica) -> str:
    of = f"replica {replica.name} of ClickHouse table {NEW_TABLE}"
    if replica.here:
        return f"{of} has no session with Keeper."
    lacks = "may lack some part" if replica.lacks is None else f"lacks {counted(replica.lacks, 'part')}"
    lacks = f"{of} {lacks} of what is copied and verified"
    if replica.active:
        return f"{lacks}, and its readers would miss ids. See system.replication_queue there."
    if replica.lacks == 0:
        lacks = f"{of} had what is copied and verified, but its disk may have lost some of it"
    return (
        f"{lacks}, and is away: once back, its readers would miss ids. Start it, or if it is gone for good: "
        f"SYSTEM DROP REPLICA '{replica.name}' FROM TABLE {NEW_TABLE}, and the same for {OLD_TABLE}."
    )
