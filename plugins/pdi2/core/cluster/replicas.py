"""The replicas of both tables: waits for the one we are connected to, and for the others before readers may ask them.

docs/clusters.md explains the design. The settings that replicas need are sent with every statement: see CONSISTENT in
clickhouse.py.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from clickhouse_connect.driver.exceptions import DatabaseError

from pdi2.core.cluster.pressure import patiently
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import MigrationError, WaitError, describe, waits
from pdi2.core.state.ledger import Ledger

log = logging.getLogger(__name__)

NEW_TABLE = "person_distinct_id2"
SYNC = {"person_distinct_id": "sync_old", NEW_TABLE: "sync_new"}
SYNC_SECONDS = 10
"""How long one statement waits. Then the log says what for, and the next statement goes on waiting."""
SYNCING = {"receive_timeout": SYNC_SECONDS}
UNREADABLE = {60, 497}
"""No such table, or no grant: the errors that reading system.zookeeper may end with."""
TIMED_OUT, UNFINISHED = 159, 341
SYNTAX = 62
"""ClickHouse 22.12 does not know LIGHTWEIGHT, and waits for merges too."""
CONNECTED = "connected_to"
SWITCH_WAITS, SWITCH_WAITED = "switch_waits", "switch_waited"
"""Both carry the time since when a wait goes on. The second one ends that wait."""
PATIENCE_SECONDS = 1800
"""How long a wait for the replicas at the switch may take, however often the task is put off meanwhile."""


class ReplicaError(MigrationError):
    """Some replica does not receive what was copied; reads stay on the old table."""


@dataclass(frozen=True)
class State:
    """One table on the replica we are connected to, as system.replicas shows it. `delay` is in seconds."""

    table: str
    keeper_path: str
    replica: str
    is_readonly: int
    is_session_expired: int
    active: int
    total: int
    there: tuple[str, ...]
    away: tuple[str, ...]
    delay: int
    queue: int
    queue_exception: str
    keeper_exception: str

    @property
    def is_cut_off(self) -> bool:
        """Whether the replica has lost Keeper, which passes by itself."""
        return bool(self.is_readonly or not self.total) and not self.is_forgotten

    @property
    def is_forgotten(self) -> bool:
        """Whether Keeper can be reached but no longer has the replica's data."""
        return bool(self.is_readonly and not self.is_session_expired and "No node" in self.keeper_exception)


@dataclass(frozen=True)
class Replica:
    """A replica of the new table, as Keeper shows it.

    `lacks` counts the parts that the replica we are connected to has and this one does not. It is None if that is not
    known, because we may not read Keeper.
    """

    name: str
    active: bool
    here: bool
    lacks: int | None


def states(warehouse: Warehouse) -> list[State]:
    """The state of each of the two tables that is replicated."""
    return [State(*map(_plain, row)) for row in warehouse.rows("replicas")]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def catch_up(warehouse: Warehouse) -> None:
    """Waits until the replica we are connected to has everything inserted so far into either table, on any replica.

    Raises WaitError if that takes long.
    """
    for state in states(warehouse):
        if state.queue:
            log.info("%s", _progress(state))
        patiently(partial(_sync, warehouse, state.table), "The work")


def _sync(warehouse: Warehouse, table: str) -> str | None:
    """Waits for at most SYNC_SECONDS; returns why the wait must go on, or None if it is over."""
    try:
        try:
            warehouse.execute(SYNC[table], settings=SYNCING)
        except DatabaseError as error:
            if error.code != SYNTAX:
                raise
            warehouse.execute(f"{SYNC[table]}_and_merge", settings=SYNCING)
    except DatabaseError as error:
        if error.code != TIMED_OUT and not waits(error):
            raise
        now = [state for state in states(warehouse) if state.table == table]
        told = "" if error.code == TIMED_OUT else f" {describe(error)}"
        return "".join(problem_of(state) or _progress(state) for state in now) + told
    return None


def _progress(state: State) -> str:
    trouble = f" Its last failure: {state.queue_exception}" if state.queue_exception else ""
    return (
        f"replica {state.replica} of ClickHouse table {state.table} is {state.delay:,} s behind, with {state.queue:,} "
        f"entries in its queue.{trouble}"
    )


def follow(ledger: Ledger, warehouse: Warehouse) -> None:
    """If the connection leads to another replica than before, has every team verified again.

    The earlier replica may be lost, together with rows that no other replica had fetched yet.
    """
    for state in states(warehouse):
        before = (ledger.latest(CONNECTED) or {}).get("replica")
        if state.table != NEW_TABLE or before == state.replica:
            continue
        if before:
            ledger.verify_all_again()
            log.warning(
                "posthog_clickhouse led to replica %s and leads to %s now, so every team is verified again. Helper "
                "tables of a copy, person_distinct_id2_staging_..., may be left on %s: drop them there.",
                *(before, state.replica, before),
            )
        ledger.record(CONNECTED, replica=state.replica, before=before)


def survey(warehouse: Warehouse) -> list[dict[str, Any]]:
    """What is known now about the new table's replicas; empty if the table is not replicated."""
    return [asdict(one) for state in _of_new(warehouse) for one in _look(warehouse, state, _parts(warehouse))]


def wait_for_all(ledger: Ledger, warehouse: Warehouse) -> list[dict[str, Any]]:
    """Waits until every replica has all the parts of the new table that ours has now; returns the replicas.

    Every replica counts, because a reader may ask any of them, and one that is away now may come back. The list is
    empty if the table is not replicated. Raises WaitError if the wait is long, ReplicaError if it is too long.

    If a failover has led us to another replica meanwhile, what was verified may be lost: see `follow`.
    """
    catch_up(warehouse)
    follow(ledger, warehouse)
    parts = _parts(warehouse)
    found: list[Replica] = []
    since = _waits_since(ledger) or time.time()

    def look() -> str | None:
        found.clear()
        for state in _of_new(warehouse):
            found.extend(_look(warehouse, state, parts, or_wait=True))
        return " ".join(_lag(one) for one in found if one.lacks != 0) or None

    def record(_: str, reason: str) -> None:
        ledger.record(SWITCH_WAITS, reason=reason, since=since)

    try:
        patiently(look, "The switch", record)
    except WaitError as wait:
        if time.time() - since > PATIENCE_SECONDS:
            end_wait(ledger)
            raise ReplicaError(
                f"The switch was given up, because some replica lacks what is copied and verified. {wait} Reads stay "
                "on the old table. Mend the replica and trigger the run again: only the switch is left."
            ) from wait
        raise
    end_wait(ledger)
    return [asdict(one) for one in found]


def end_wait(ledger: Ledger) -> None:
    """The patience with replicas begins anew afterwards."""
    if since := _waits_since(ledger):
        ledger.record(SWITCH_WAITED, since=since)


def _waits_since(ledger: Ledger) -> float | None:
    begun, ended = (ledger.latest_of_run(what) or {"since": None} for what in (SWITCH_WAITS, SWITCH_WAITED))
    return None if begun["since"] == ended["since"] else begun["since"]


def _of_new(warehouse: Warehouse) -> list[State]:
    return [state for state in states(warehouse) if state.table == NEW_TABLE]


def _parts(warehouse: Warehouse) -> set[str]:
    return _names(warehouse.rows("parts_of_new"))


def _look(warehouse: Warehouse, state: State, parts: set[str], or_wait: bool = False) -> list[Replica]:
    """All registered replicas, with how many of these parts each lacks.

    If we may not read Keeper, that number is not known; with `or_wait`, ClickHouse then waits for all replicas.
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
    return [Replica(name, name not in state.away, name == state.replica, lacking(parts, there[name])) for name in names]


def _look_without_keeper(warehouse: Warehouse, state: State, wait: bool) -> list[Replica]:
    lacks = None
    if wait:
        try:
            warehouse.execute("reach_every_replica")
            lacks = 0
        except DatabaseError as error:
            if error.code not in (TIMED_OUT, UNFINISHED):
                raise
            # A mutation that failed or was killed is unfinished too, and proves nothing (ClickHouse's
            # StorageReplicatedMergeTree::waitMutationToFinishOnReplicas).
            lacks = 0 if error.code == UNFINISHED and "inactive" in str(error) else None
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
    """How many of the parts are neither there nor contained in a larger part that a merge or a mutation has made."""
    larger = [_extent(name) for name in there - parts]
    return sum(not any(_covers(one, _extent(name)) for one in larger) for name in parts - there)


def _extent(part: str) -> tuple[str, int, int, int]:
    """Partition, first block, last block and mutation of a name like all_0_5_1_8 (ClickHouse's MergeTreePartInfo)."""
    partition, first, last, _level, *mutation = part.split("_")
    return partition, int(first), int(last), int(mutation[0]) if mutation else 0


def _covers(larger: tuple[str, int, int, int], part: tuple[str, int, int, int]) -> bool:
    return larger[0] == part[0] and larger[1] <= part[1] and larger[2] >= part[2] and larger[3] >= part[3]


def _lag(replica: Replica) -> str:
    of = f"replica {replica.name} of ClickHouse table {NEW_TABLE}"
    if replica.here:
        return f"{of} has no session with Keeper."
    lacks = f"{of} lacks {f'{replica.lacks:,} parts' if replica.lacks else 'some part'} of what is copied and verified"
    if replica.active:
        return f"{lacks}, and its readers would miss ids. See system.replication_queue there."
    return (
        f"{lacks}, and is away: once back, its readers would miss ids. Start it, or if it is gone for good: "
        f"SYSTEM DROP REPLICA '{replica.name}' FROM TABLE {NEW_TABLE}."
    )


def problem_of(state: State) -> str | None:
    of = f"replica {state.replica} of ClickHouse table {state.table}"
    if state.is_forgotten:
        return (
            f"Keeper has nothing of {of}, which is read-only therefore. Its rows are there: SYSTEM RESTORE REPLICA "
            f"{state.table} puts it back into Keeper."
        )
    if state.is_cut_off:
        reason = f" ({state.keeper_exception})" if state.keeper_exception else ""
        return (
            f"The session of {of} with Keeper is lost{reason}. See whether Keeper is up and can be reached from there."
        )
    if state.active < (majority := state.total // 2 + 1):
        return (
            f"Of ClickHouse table {state.table} {state.active} of {state.total} replicas are active, and an insert "
            f"waits for {majority}. Away: {', '.join(state.away)}. Start the others, or drop those that are gone for "
            f"good (SYSTEM DROP REPLICA '...' FROM TABLE {state.table})."
        )
    return None
