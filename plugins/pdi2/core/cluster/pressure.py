"""Kindness to the cluster: between slices the copy looks at the server, and waits while it is busy."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from clickhouse_connect.driver.exceptions import DatabaseError

from pdi2.core.cluster import lag
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import WaitError
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.slices import named
from pdi2.core.state.words import are, counted

log = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 2.0
WAIT_IN_SLOT_SECONDS = 60.0
"""After this wait the task is put off, which frees its worker slot."""

TELL_EVERY_SECONDS = 20.0
UNKNOWN_TABLE = 60
PARTS_SHARE = 0.5
"""The new table may have this share of the number of parts at which ClickHouse starts to delay inserts."""
USUAL_DELAYED_AT = 1_000
MOST_LAG_SECONDS = 60
LEAST_FREE_DISK = 0.05
ENOUGH_FREE_DISK = 10_000_000_000
"""In bytes. So much is enough of a large disk, of which LEAST_FREE_DISK would be more."""
MOST_MEMORY = 0.9


def look(warehouse: Warehouse) -> tuple[str | None, int]:
    """Why no slice should begin now (None: it may begin), and how many more parts the new table has room for."""
    parts, delayed_at, ((lag, table, ours), replicas), memory, memory_limit, disks = _pressure(warehouse)
    active, total_replicas, away = replicas[0] if replicas else (0, None, b"")
    policy, free, total = disks[0] if disks else (b"", 0.0, 0.0)
    most = delayed_at or USUAL_DELAYED_AT
    room = int(PARTS_SHARE * most) - (parts or 0)
    reason = None
    if room < 0:
        reason = (
            f"person_distinct_id2 has {counted(parts, 'part')} in a partition, and from {most:,} on inserts are delayed"
        )
    elif total_replicas == 0:
        reason = (
            f"replica {ours.decode()} of person_distinct_id2 has no session with Keeper: see whether Keeper is up and "
            "can be reached from there"
        )
    elif total_replicas and active < total_replicas // 2 + 1:
        reason = (
            f"{active} of {counted(total_replicas, 'replica')} of person_distinct_id2 {are(active)} active, too few "
            f"for an insert; away: {away.decode()}"
        )
    elif lag and lag > MOST_LAG_SECONDS:
        reason = f"replica {ours.decode()} of {table.decode()} is {lag:,} s behind: see system.replication_queue there"
    elif policy and free <= kept_free(total):
        reason = (
            f"only {free / 1e9:.1f} GB of the disks of person_distinct_id2 are free (storage policy {policy.decode()})"
        )
    elif memory_limit and memory > MOST_MEMORY * memory_limit:
        reason = f"the server uses {memory / 1e9:.1f} of the {memory_limit / 1e9:.1f} GB of memory that it may use"
    return reason, room


def _pressure(warehouse: Warehouse) -> tuple[Any, ...]:
    try:
        return warehouse.rows("pressure", {"server_settings": "server_settings"})[0]
    except DatabaseError as error:
        if error.code != UNKNOWN_TABLE:
            raise
        return warehouse.rows("pressure", {"server_settings": "settings"})[0]  # which has no memory limit of the server


def kept_free(total: float) -> float:
    """The bytes of disks of this size that the copy leaves to the application."""
    return min(LEAST_FREE_DISK * total, ENOUGH_FREE_DISK)


def disks_of_new(warehouse: Warehouse) -> tuple[str, float, float]:
    """The new table's storage policy, and the free and total bytes of that policy's disks."""
    for policy, free, total in warehouse.rows("disks_of_new"):
        return policy.decode(), free, total
    return "", 0.0, 0.0


def wait_while_paused(ledger: Ledger, team_ids: Sequence[int]) -> None:
    """Returns once the migration is not paused. Raises WaitError after WAIT_IN_SLOT_SECONDS."""
    what = f"The work on {named(team_ids)}"
    try:
        patiently(lambda: "somebody has paused the migration" if ledger.paused() else None, what)
    except WaitError:
        refuse_while_paused(ledger, what)


def refuse_while_paused(ledger: Ledger, what: str) -> None:
    """Raises WaitError if the migration is paused."""
    if pause := ledger.paused():
        raise WaitError(
            f"{what} waits: {pause.actor} paused the migration at {pause.at:%Y-%m-%d %H:%M:%S %Z}. What is finished "
            "is kept. It goes on by itself once somebody resumes it on the migration page."
        )


def wait_while_busy(ledger: Ledger, warehouse: Warehouse, team_ids: Sequence[int]) -> int:
    """Waits until the server is free, and returns how many more parts the new table has room for.

    Raises WaitError after WAIT_IN_SLOT_SECONDS.
    """
    wait_while_paused(ledger, team_ids)
    lag.measure(ledger, warehouse)
    room = 0

    def busy() -> str | None:
        nonlocal room
        reason, room = look(warehouse)
        return reason

    record = partial(ledger.record, team_id=team_ids[0])
    if waited := patiently(busy, f"The copy of {named(team_ids)}", record):
        record("copy_goes_on", waited_seconds=round(waited, 1))
    return room


def patiently(look: Callable[[], str | None], what: str, record: Callable[..., None] | None = None) -> float:
    """Calls `look` until it gives no reason to wait, and returns the seconds waited.

    A reason is logged again and again, but passed to `record` only when it is new and when the wait is given up.
    Raises WaitError after WAIT_IN_SLOT_SECONDS.
    """
    began = time.monotonic()
    told, told_at = "", 0.0
    while reason := look():
        now = time.monotonic()
        if reason != told or now - told_at > TELL_EVERY_SECONDS:
            log.warning("%s waits: %s", what, reason)
            told_at = now
        if reason != told and record:
            record("copy_waits", reason=reason)
        told = reason
        if now - began > WAIT_IN_SLOT_SECONDS:
            if record:
                record("copy_put_off", reason=reason)
            raise WaitError(
                f"{what} has waited for {now - began:.0f} s: {reason.rstrip('.')}. What is finished is kept. The task "
                "gives its worker slot back and goes on later. If this happens again and again, look at ClickHouse's "
                "merges, replication, disk and load."
            )
        time.sleep(LOOK_EVERY_SECONDS)
    return time.monotonic() - began if told else 0.0
