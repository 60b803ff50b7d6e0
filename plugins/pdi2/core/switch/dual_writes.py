"""Turns dual writes on, and proves that every writer honours them before any row is copied."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pdi2.core.engines import postgres
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import MigrationError
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.ownership import claim
from pdi2.core.state.settings import Settings
from pdi2.core.state.switches import NAME, Status, Switches
from pdi2.core.state.words import counted, quoted
from pdi2.core.verify.comparing import text_of, truths

log = logging.getLogger(__name__)

ENABLED = "dual_writes_enabled"
MISSED = "links_missed"
EXAMPLES = 5
MOST_KNOWN = 10_000
WATCHED_AGAIN_SECONDS = 3_600
MOST_LINKS = 100_000
"""Before the switch, links of the last WATCHED_AGAIN_SECONDS are looked at. If a window has more than MOST_LINKS, the
links of a sample of ids are: 150,000 did not always fit into the default memory."""
LATE_SECONDS = 5.0
MOST_LATE_SECONDS = 60.0
"""A link is missed only if a second look misses it too, after the replication lag allowance, but within these limits.
Its stamp alone does not show how old it is, because the writer's clock may be slow."""
FUTURE_SECONDS = 7 * 86_400
"""A link stamped at most this far in the future may still come into a window of this migration."""


class Miss(NamedTuple):
    """A link that the new table does not show."""

    one_of: int
    """Of how many ids one was looked at."""
    team_id: int
    distinct_id: bytes
    written_at: int
    """Seconds since the epoch."""
    event: int
    """A hash of the link."""
    version: int | None
    """The greatest version of the id in the new table; None if the new table does not have the id."""
    total: int
    """How many misses there are among the ids that were looked at."""


class DualWriteError(MigrationError):
    """The dual write cannot be enabled or proven."""


@dataclass(frozen=True)
class Observation:
    """The result of one look at a window of the dual write."""

    proven: bool
    message: str


def enable(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> None:
    """Sets writes to "both" and the row to Starting, in one transaction: everything or nothing."""
    if settings.dry_run:
        raise MigrationError(
            "This run is a dry run, which writes nothing, not even if this task is run by hand. Trigger the DAG "
            "without dry_run."
        )
    ledger.create()
    switches = Switches(ledger.connection)
    begins = switches.writes() != "both" or ledger.latest(ENABLED) is None
    known = _stamped_ahead(warehouse) if begins else []  # before the transaction: this reads the whole old table
    with ledger.transaction():
        switches.create_row()
        row = switches.row()
        assert row is not None  # noqa: S101  (created above)
        claim(ledger, asdict(settings))
        was = switches.writes()
        if row.status in (Status.COMPLETED_SUCCESSFULLY, Status.RUNNING) or was == "new":
            raise DualWriteError(
                f"The row {NAME} has become {Status(row.status).name} since preflight looked, or the application "
                "writes the new table only, so enabling the dual write would undo a switch or take over somebody "
                "else's run. Nothing was changed. Trigger a new run: its preflight says what is left to do."
            )
        if not switches.left_by_us(row) or not switches.both_are_written():
            # As after a rollback or a run of PostHog's own runner, whose rows of 1970 no recheck would look at.
            ledger.verify_all_again()
        switches.set_writes("both")
        switches.change(Status(row.status), Status.STARTING, progress=0)  # the plan says how far earlier runs came
        now = warehouse.rows("now")[0][0]
        if begins or was != "both":
            ledger.record(ENABLED, enabled_at=now, known=known, writes_before=was)
        newest, *_ = _newest_id(ledger)
        ledger.record("run_started", at=now, newest_id=newest, settings=asdict(settings))


def _stamped_ahead(warehouse: Warehouse) -> list[str]:
    """The hashes of the links that have a time in the future. They show neither a missed write nor a dual one."""
    (now,) = warehouse.rows("now")[0]
    window = {"window_start": now, "window_end": now + FUTURE_SECONDS}
    ahead = warehouse.rows("links_ahead", {**window, "most": MOST_KNOWN + 1})
    if len(ahead) > MOST_KNOWN:
        raise DualWriteError(
            f"More than {MOST_KNOWN:,} links in person_distinct_id have a time in the future: a writer's clock, "
            "or ClickHouse's, is wrong, and the dual write cannot be proven. Nothing was changed. Set the clock "
            "right, wait until those times have passed, and trigger the run again."
        )
    return [str(link) for (link,) in ahead]


def observe(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> Observation:
    """Looks at a window of `settle_seconds` (0: of the default's length) that ended one in-flight allowance ago.

    Raises DualWriteError with counts and examples if, after `settings.proof_limit_seconds`, a miss is still in the
    window, or Postgres's new ids have still not reached the old table.
    """
    enabled = ledger.latest(ENABLED)
    started = ledger.latest_of_run("run_started")
    if enabled is None or started is None:
        raise MigrationError("Dual writes were never enabled by this project. Clear enable_dual_writes to enable them.")
    (now,) = warehouse.rows("now")[0]
    end = due(now, settings)
    window = settings.settle_seconds or Settings.settle_seconds  # dual writes may have been on for weeks
    start = min(end, max(enabled["enabled_at"], end - window))
    known = ",".join(enabled["known"])
    links = _links(warehouse, start, end, known)
    one_of = _one_of(links)

    def look() -> list[Miss]:
        return _evidence(ledger, _misses(warehouse, start, end, known, one_of))

    overdue = now - started["at"] >= settings.proof_limit_seconds
    misses = _confirmed(look, settings) if overdue else look()
    window_is_full = end - enabled["enabled_at"] >= settings.settle_seconds
    if misses:
        return _missed(ledger, misses, settings, now, started["at"])
    if not window_is_full:
        left = settings.settle_seconds - (end - enabled["enabled_at"])
        _watch(ledger, now + left, "No miss so far. Links are watched until the window of the proof is full.")
        return Observation(False, f"No miss so far. The window is full in {left:.0f} s.")
    if not links and _newest_is_late(ledger, warehouse, started, now):
        return _late(ledger, settings, now, started["at"])
    if links:
        message = (
            f"Proven: {counted(links, 'link')} written in the last {end - start} s, and the new table lacks "
            f"none{_sample(one_of)}."
        )
    else:
        message = (
            f"Nothing was written in the last {end - start} s, so nothing was proven. Going on, because an "
            "idle system loses nothing: verify compares every team with Postgres."
        )
    ledger.record("dual_writes_proven", links=links, seconds=end - start, one_of=one_of)
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
    start = min(start, end)
    known = ",".join(enabled["known"])
    one_of = _one_of(_links(warehouse, start, end, known))
    misses = _confirmed(lambda: _repairable(ledger, _misses(warehouse, start, end, known, one_of)), settings)
    if misses:
        found = _found(misses)
        if before is None or before["at"] < misses[0].written_at:
            ledger.record(MISSED, since=start, at=misses[0].written_at, found=found)
        return f"{found}: {_listed(misses)}. Readers of the new table would miss what comes next."
    if before and not _links(warehouse, max(before["at"], _last_repair(ledger, now, settings)), end, known):
        return (
            f"{before['found']}, the last of them at {datetime.fromtimestamp(before['at'], UTC)}. No link has come "
            "since, so nothing shows that both tables are written again."
        )
    return None


def _repairable(ledger: Ledger, misses: list[Miss]) -> list[Miss]:
    """The misses that a writer is to blame for, without ids that Postgres does not have: no repair would end those."""
    misses = _evidence(ledger, misses)
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
    log.info("%s. Looking again in %.0f s, because they may only be late", _found(misses), seconds)
    time.sleep(seconds)
    return look()


def due(now: int, settings: Settings) -> int:
    """Links stamped until then are due: the replication lag allowance is over. Stamps are cut to whole seconds."""
    return math.floor(now - settings.in_flight) - 1 if settings.in_flight else now


def _one_of(links: int) -> int:
    """Of how many ids one is looked at. A shorter window instead could miss a burst, and take what is left for idle."""
    return math.ceil(links / MOST_LINKS) or 1


def _sample(one_of: int) -> str:
    return f" (one id in {one_of:,} was looked at)" if one_of > 1 else ""


def _links(warehouse: Warehouse, start: int, end: int, known: str) -> int:
    window = {"window_start": start, "window_end": end, "known": known}
    links: int = warehouse.rows("dual_writes_seen", window)[0][0]
    return links


def _newest_id(ledger: Ledger) -> tuple[int, int, str]:
    """Of Postgres's newest id: its row id, its team, and the id itself."""
    return postgres.execute(ledger.connection, "newest_id").fetchone() or (0, 0, "")


def _newest_is_late(ledger: Ledger, warehouse: Warehouse, started: dict[str, Any], now: int) -> bool:
    """Whether Postgres has got ids since the run began, but the old table lacks the link of the newest one, or has it
    with a stamp that ClickHouse's clock has yet to reach: no window would have it."""
    newest, team_id, distinct_id = _newest_id(ledger)
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
    listed = _listed(misses)
    message = f"{_found(misses)}: {listed}."
    if seconds_spent < settings.proof_limit_seconds:
        message += " A writer's cache of the switch may not have run out yet."
        _watch(ledger, started_at + settings.proof_limit_seconds, message, "missed")
        return Observation(False, f"{message} Waiting.")
    ledger.record("dual_writes_missed", misses=misses[0].total, examples=listed)
    raise DualWriteError(
        f"A writer ignores the dual-write switch. After {seconds_spent} s {message} Nothing was copied, and "
        "reads stay on the old table. Restart or fix the writers of these teams (is the setting "
        "PERSON_DISTINCT_ID_WRITES read at all? is the consumer of person_distinct_id2 running? do the clocks agree?), "
        "then trigger the run again."
    )


def _found(misses: list[Miss]) -> str:
    total, one_of = misses[0].total, misses[0].one_of
    return f"{counted(total, 'link')} reached person_distinct_id and not person_distinct_id2{_sample(one_of)}"


def _listed(misses: list[Miss]) -> str:
    return "; ".join(
        f"team {miss.team_id}, distinct_id {quoted(miss.distinct_id)} at {datetime.fromtimestamp(miss.written_at, UTC)}"
        for miss in misses[:EXAMPLES]
    )


def _misses(warehouse: Warehouse, start: int, end: int, known: str, one_of: int) -> list[Miss]:
    window = {"window_start": start, "window_end": end, "one_of": one_of}
    found = warehouse.rows("missed_dual_writes", {**window, "known": known, "most": MOST_KNOWN + 1})
    return [Miss(one_of, *row) for row in found]


def _evidence(ledger: Ledger, misses: list[Miss]) -> list[Miss]:
    """The misses that a writer is to blame for.

    PostHog 1.31 to 1.33 delete an id without a tombstone, and an id that comes back starts again at version 0. Its new
    row is written, but a merge drops it in favour of an old row whose version is no smaller.
    """
    truth = truths(ledger.connection, ((miss.team_id, miss.distinct_id) for miss in misses if miss.version is not None))
    swallowed = {
        miss
        for miss in misses
        if miss.version is not None and text_of(miss.distinct_id) is not None
        if (row := truth.get((miss.team_id, miss.distinct_id))) is None or row.version <= miss.version
    }
    return [miss._replace(total=miss.total - len(swallowed)) for miss in misses if miss not in swallowed]
