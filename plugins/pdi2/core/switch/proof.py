"""Proves that every writer honours the dual write, before any row is copied and again before reads are switched."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pdi2.core.cluster import lag
from pdi2.core.engines import postgres
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import MigrationError
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.state.switches import Switches
from pdi2.core.state.words import counted
from pdi2.core.switch import links
from pdi2.core.switch.dual_writes import ENABLED, DualWriteError
from pdi2.core.switch.links import Miss, Window
from pdi2.core.verify.comparing import truths

log = logging.getLogger(__name__)

MISSED = "links_missed"
WATCHED_AGAIN_SECONDS = 3_600
"""Before the switch, links of this time are looked at."""
LATE_SECONDS = 5.0
MOST_LATE_SECONDS = 60.0
"""A link is missed only if a second look misses it too, after the replication lag allowance, but within these limits.
Its stamp alone does not show how old it is, because the writer's clock may be slow."""


@dataclass(frozen=True)
class Observation:
    """The result of one look at a window of the dual write."""

    proven: bool
    message: str


def observe(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> Observation:
    """Looks at a window of `settle_seconds` (0: of the default's length) that ended one in-flight allowance ago.

    Raises DualWriteError with counts and examples if, after `settings.proof_limit_seconds`, a miss is still in the
    window, or Postgres's new ids have still not reached the old table.
    """
    enabled = ledger.latest(ENABLED)
    started = ledger.latest_of_run("run_started")
    if enabled is None or started is None:
        raise MigrationError("Dual writes were never enabled by this project. Clear enable_dual_writes to enable them.")
    if Switches(ledger.connection).reads_are_new():  # somebody cleared the task; old writes may have ended since
        return Observation(True, "Reads are on the new table already, so nothing is left to prove.")
    (now,) = warehouse.rows("now")[0]
    end = due(now, settings)
    length = settings.settle_seconds or Settings.settle_seconds  # dual writes may have been on for weeks
    window = Window(min(end, max(enabled["enabled_at"], end - length)), end, enabled["known"])
    written = window.links(warehouse)
    one_of = links.one_of(written)

    def look() -> list[Miss]:
        return links.blamed(ledger, window.misses(warehouse, one_of))

    overdue = now - started["at"] >= settings.proof_limit_seconds
    misses = _confirmed(look, settings) if overdue else look()
    window_is_full = end - enabled["enabled_at"] >= settings.settle_seconds
    if misses:
        return _missed(ledger, misses, settings, now, started["at"])
    if not window_is_full:
        left = settings.settle_seconds - (end - enabled["enabled_at"])
        _watch(ledger, now + left, "No miss so far; the window of the proof is filling.")
        return Observation(False, f"No miss so far. The window is full in {left:.0f} s.")
    if not written and _newest_is_late(ledger, warehouse, started, now):
        return _late(ledger, settings, now, started["at"])
    if written:
        message = (
            f"Proven: {counted(written, 'link')} written in the last {end - window.start} s, and the new table lacks "
            f"none{links.sampled(one_of)}."
        )
    else:
        message = (
            f"Nothing was written in the last {end - window.start} s, so nothing was proven. Going on, because an "
            "idle system loses nothing: verify compares every team with Postgres."
        )
    ledger.record("dual_writes_proven", links=written, seconds=end - window.start, one_of=one_of)
    return Observation(True, message)


def missed(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> str | None:
    """Why nothing should be switched now: links of the last hour or less that the new table lacks.

    None if it lacks none, and if a link has reached both tables since one was missed and since the last repair. What a
    recheck or an audit has written is no longer missed, but says nothing about the consumer.
    """
    enabled = ledger.latest(ENABLED) or {"enabled_at": 0, "known": []}
    before = ledger.latest_of_run(MISSED)
    (now,) = warehouse.rows("now")[0]
    end = due(now, settings)
    start = max(enabled["enabled_at"], end - WATCHED_AGAIN_SECONDS)
    if before:
        start = min(start, before["since"])
    window = Window(min(start, end), end, enabled["known"])
    one_of = links.one_of(window.links(warehouse))
    misses = _confirmed(lambda: _repairable(ledger, window.misses(warehouse, one_of)), settings)
    if misses:
        found = links.counts(misses)
        if before is None or before["at"] < misses[0].written_at:
            ledger.record(MISSED, since=window.start, at=misses[0].written_at, found=found)
        return f"{found}: {links.examples(misses)}. Readers of the new table would miss what comes next."
    if before and not window._replace(start=max(before["at"], _last_repair(ledger, now, settings))).links(warehouse):
        return (
            f"{before['found']}, the last of them at {datetime.fromtimestamp(before['at'], UTC)}. No link has come "
            "since, so nothing shows that both tables are written again."
        )
    return None


def _repairable(ledger: Ledger, misses: list[Miss]) -> list[Miss]:
    """The misses that a writer is to blame for, without ids that Postgres does not have: no repair would end those."""
    misses = links.blamed(ledger, misses)
    there = truths(ledger.connection, ((miss.team_id, miss.distinct_id) for miss in misses))
    return [miss for miss in misses if (miss.team_id, miss.distinct_id) in there]


def _last_repair(ledger: Ledger, now: int, settings: Settings) -> int:
    """After which stamp a link was not repaired, by ClickHouse's clock; 0 if nothing was repaired."""
    seconds_ago = postgres.value(ledger.connection, "last_repair")
    return 0 if seconds_ago is None else int(now - float(seconds_ago) + settings.in_flight)


def _confirmed(look: Callable[[], list[Miss]], settings: Settings) -> list[Miss]:
    """The misses that a second look finds too."""
    misses = look()
    if not misses:
        return []
    seconds = min(max(LATE_SECONDS, settings.in_flight), MOST_LATE_SECONDS)
    log.info("%s. Looking again in %.0f s, because they may only be late", links.counts(misses), seconds)
    time.sleep(seconds)
    return look()


def due(now: int, settings: Settings) -> int:
    """Links stamped until then are due: the replication lag allowance is over. Stamps are cut to whole seconds."""
    return math.floor(now - settings.in_flight) - 1 if settings.in_flight else now


def _newest_is_late(ledger: Ledger, warehouse: Warehouse, started: dict[str, Any], now: int) -> bool:
    """Whether Postgres has got ids since the run began, but the old table lacks the link of the newest one, or has it
    with a stamp that ClickHouse's clock has yet to reach: no window would have it."""
    newest, team_id, distinct_id = lag.newest_id(ledger)
    if newest <= started.get("newest_id", newest):
        return False
    where = {"team_id": team_id, "distinct_id": distinct_id.encode().hex(), "since": started["at"] - 1, "until": now}
    return not warehouse.rows("link_seen", where)[0][0]


def _late(ledger: Ledger, settings: Settings, now: int, started_at: int) -> Observation:
    """Waits for links that must be on their way, because Postgres has the ids; raises DualWriteError once overdue."""
    message = (
        "Postgres has got new ids since this run began, but person_distinct_id has no link in the window of the proof."
    )
    patience = settings.in_flight or Settings().in_flight
    until = _watch(ledger, max(started_at + settings.proof_limit_seconds, now + patience), message, "late")
    if now < until:
        return Observation(False, f"{message} Waiting.")
    raise DualWriteError(
        f"{message} So nothing shows that both tables are written: the consumer of person_distinct_id lags or has "
        "stopped, or the writers' clocks and ClickHouse's do not agree. Nothing was copied, and reads stay on the old "
        "table. Look at the consumer's lag and at the clocks, then trigger the run again; if the lag is usual, with a "
        "greater in_flight_seconds."
    )


def _watch(ledger: Ledger, until: float, message: str, why: str | None = None) -> float:
    """Records what the proof waits for, if it waited for something else before. Returns until when it waits."""
    before = ledger.latest_of_run("dual_writes_watched")
    if before and before.get("why") == why:
        return float(before["until"])
    ledger.record("dual_writes_watched", until=until, message=message, why=why)
    return until


def _missed(ledger: Ledger, misses: list[Miss], settings: Settings, now: int, started_at: int) -> Observation:
    seconds_spent = now - started_at
    examples = links.examples(misses)
    message = f"{links.counts(misses)}: {examples}."
    if seconds_spent < settings.proof_limit_seconds:
        message += " A writer's cache of the switch may not have run out yet."
        _watch(ledger, started_at + settings.proof_limit_seconds, message, "missed")
        return Observation(False, f"{message} Waiting.")
    ledger.record("dual_writes_missed", misses=misses[0].total, examples=examples)
    raise DualWriteError(
        f"A writer ignores the dual-write switch. After {seconds_spent} s {message} Nothing was copied, and "
        "reads stay on the old table. Restart or fix the writers of these teams (is the setting "
        "PERSON_DISTINCT_ID_WRITES read at all? is the consumer of person_distinct_id2 running? do the clocks agree?), "
        "then trigger the run again."
    )
