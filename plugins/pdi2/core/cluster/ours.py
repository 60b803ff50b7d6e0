"""Our replica, the one we are connected to: what it knows about itself, and the wait until it has caught up."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from clickhouse_connect.driver.exceptions import DatabaseError

from pdi2.core.cluster.pressure import patiently
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import describe, visible, waits
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.slices import NEW_TABLE, OLD_TABLE
from pdi2.core.state.words import counted

log = logging.getLogger(__name__)

SYNC_SECONDS = 10
"""How long one statement waits. Then the log says what for, and the next statement goes on waiting."""
TIMED_OUT = 159
UNREADABLE = {60, 497}
"""No such table, or no grant: the errors that reading system.zookeeper or the queue may end with."""
SYNTAX = 62
"""ClickHouse 22.12 does not know LIGHTWEIGHT, and waits for merges too."""
CONNECTED = "connected_to"


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
    def is_shut(self) -> bool:
        """Whether ClickHouse, which reaches Keeper, keeps the table read-only: it is starting, or refuses to."""
        return bool(self.is_readonly and not self.is_session_expired and self.total) and not self.is_forgotten

    @property
    def is_forgotten(self) -> bool:
        """Whether Keeper can be reached but no longer has the replica's data."""
        return bool(self.is_readonly and not self.is_session_expired and "No node" in self.keeper_exception)


def states(warehouse: Warehouse) -> list[State]:
    """The state of each of the two tables that is replicated."""
    return [State(*map(plain, row)) for row in warehouse.rows("replicas")]


def plain(value: Any) -> Any:
    """Bytes as visible text, whatever they hold: a mutation may name ids that are no text."""
    if isinstance(value, bytes):
        return visible(value.decode(errors="replace"))
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def catch_up(warehouse: Warehouse, tables: Collection[str] = (OLD_TABLE, NEW_TABLE)) -> None:
    """Waits until the replica we are connected to has everything inserted so far into these tables, on any replica.

    Raises WaitError if that takes long.
    """
    for state in states(warehouse):
        if state.table not in tables:
            continue
        if state.queue:
            log.info("%s", _progress(warehouse, state))
        patiently(partial(_sync, warehouse, state.table), "The work")


def _sync(warehouse: Warehouse, table: str) -> str | None:
    """Waits for at most SYNC_SECONDS; returns why the wait must go on, or None if it is over."""
    settings = {"receive_timeout": SYNC_SECONDS}
    try:
        try:
            warehouse.execute("sync", {"table": table}, settings)
        except DatabaseError as error:
            if error.code != SYNTAX:
                raise
            warehouse.execute("sync_and_merge", {"table": table}, settings)
    except DatabaseError as error:
        if error.code != TIMED_OUT and not waits(error):
            raise
        now = [state for state in states(warehouse) if state.table == table]
        told = "" if error.code == TIMED_OUT else f" {describe(error)}"
        return "".join(problem_of(state) or _progress(warehouse, state) for state in now) + told
    return None


def _progress(warehouse: Warehouse, state: State) -> str:
    failure = state.queue_exception or _queue_failure(warehouse, state.table)
    trouble = f" Its last failure: {failure}" if failure else ""
    if state.away:  # perhaps with the only copy of a part
        trouble += f" {_away(state)}"
    return (
        f"replica {state.replica} of ClickHouse table {state.table} is {state.delay:,} s behind, with "
        f"{counted(state.queue, 'entry', 'entries')} in its queue.{trouble}"
    )


def _queue_failure(warehouse: Warehouse, table: str) -> str:
    try:
        return "".join(plain(failure) for (failure,) in warehouse.rows("queue_failure", {"table": table}))
    except DatabaseError as error:
        if error.code not in UNREADABLE:
            raise
        return ""


def follow(ledger: Ledger, warehouse: Warehouse) -> None:
    """If the new table is another one than before, has every team verified again.

    The connection leads to another replica or server, or the table was exchanged or restored: what was copied and
    verified may not be in it.
    """
    before = ledger.latest(CONNECTED) or {}
    replica = next((state.replica for state in states(warehouse) if state.table == NEW_TABLE), None)
    for table, server, is_replicated in warehouse.rows("new_table"):
        if is_replicated and replica is None:
            continue  # somebody restarts or detaches the table just now
        now = {"replica": replica, "table": _known(table), "server": _known(server)}
        if all(before.get(name) == value for name, value in now.items()):
            continue
        if any(before.get(name) not in (None, value) for name, value in now.items()):
            ledger.verify_all_again()
            log.warning(
                "posthog_clickhouse led to another person_distinct_id2 (%s) than now (%s): another replica or server, "
                "or the table was exchanged or restored, so every team is verified again. Helper tables of a copy, "
                "person_distinct_id2_staging_..., may be left where it led before: drop them there.",
                *(_listed(before), _listed(now)),
            )
        ledger.record(CONNECTED, **now, before=before.get("replica"))


def _known(identity: UUID) -> str | None:
    """None in a database with the engine Ordinary, and for an embedded server."""
    return str(identity) if identity.int else None


def _listed(place: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {place[name]}" for name in ("replica", "table", "server") if place.get(name))


def problem_of(state: State) -> str | None:
    of = f"replica {state.replica} of ClickHouse table {state.table}"
    if state.is_forgotten:
        return (
            f"Keeper has nothing of {of}, so it is read-only. Its rows are there: SYSTEM RESTORE REPLICA "
            f"{state.table} puts it back into Keeper."
        )
    if state.is_shut:
        return (
            f"{of[0].upper()}{of[1:]} is read-only, though it reaches Keeper. It is still starting, or its parts are "
            "not those that Keeper knows, as after Keeper was restored from an older state. Then ClickHouse's log "
            "there says TOO_MANY_UNEXPECTED_DATA_PARTS, and a start with the file flags/force_restore_data puts them "
            f"aside. What {NEW_TABLE} lacks after that, this migration finds and writes again."
        )
    if state.is_cut_off:
        reason = f" ({state.keeper_exception})" if state.keeper_exception else ""
        return (
            f"The session of {of} with Keeper is lost{reason}. See whether Keeper is up and can be reached from there. "
            "If it can, and its data was lost or restored, restart ClickHouse there."
        )
    if state.active < (majority := state.total // 2 + 1):
        return (
            f"Of ClickHouse table {state.table} {state.active} of {state.total} replicas are active, and an insert "
            f"waits for {majority}. {_away(state)}"
        )
    return None


def _away(state: State) -> str:
    return (
        f"Away: {', '.join(state.away)}. Start the others, or drop those that are gone for good (SYSTEM DROP REPLICA "
        f"'...' FROM TABLE {state.table})."
    )
