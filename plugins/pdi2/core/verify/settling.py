"""Decides id by id whether a difference is real, and repairs the new table where it is. Writes nothing else."""

import gc
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from more_itertools import chunked, flatten

from pdi2.core.cluster.ours import catch_up
from pdi2.core.cluster.pressure import TELL_EVERY_SECONDS
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import BusyError, MigrationError
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.state.slices import NEW_TABLE, named
from pdi2.core.state.switches import Switches
from pdi2.core.state.words import counted, quoted
from pdi2.core.verify import findings
from pdi2.core.verify.comparing import Difference, Key, differences, newest_rows, old_answers
from pdi2.core.verify.repairing import has_to_go, insert, row_of, take_away
from pdi2.core.verify.waiting import once_old

log = logging.getLogger(__name__)

EXAMPLES = 5
REPAIRED_AT_ONCE = 10_000
REMOVAL_SECONDS = 300.0
"""How long ClickHouse may take to carry out a DELETE, which it does between merges."""
LOOK_EVERY_SECONDS = 0.2


class VerifyError(MigrationError):
    """Differences from Postgres remain after the repair."""


def settle(ledger: Ledger, warehouse: Warehouse, suspected: Iterable[set[Key]], settings: Settings) -> Counter[str]:
    """Records the suspected ids that still differ after the in-flight window, and repairs them if the settings say so.

    Returns the number of findings by kind; the ledger has each finding. Raises VerifyError if a repair did not hold,
    and WaitError if our replica lags behind for long.
    """
    found: Counter[str] = Counter()
    looked, tell_at = 0, time.monotonic() + TELL_EVERY_SECONDS
    looks = flatten(differences(ledger.connection, warehouse, keys) for keys in suspected)
    with _without_collector():
        for before in once_old(chunked(looks, REPAIRED_AT_ONCE), settings.in_flight):
            catch_up(warehouse, [NEW_TABLE])  # what our replica has yet to fetch is no difference
            wrong = _still_different(ledger, warehouse, before)
            keys = {one.key for one in wrong}
            old = old_answers(warehouse, keys) if wrong and Switches(ledger.connection).old_is_written() else {}
            touched = keys if settings.repair else set()
            findings.record(ledger, wrong, old, touched, set())  # if this process dies in the repair, they are open
            left = _repair(ledger, warehouse, wrong) if settings.repair else wrong
            if repaired := keys - {one.key for one in left}:
                findings.record(ledger, wrong, old, touched, repaired)
            if settings.repair and left:
                raise _unrepaired(ledger, left)
            found.update(one.kind.value for one in wrong)
            looked += len(before)
            if time.monotonic() > tell_at:
                log.info("Ids looked at once more so far: %s, of which still differed: %s", looked, found.total())
                tell_at = time.monotonic() + TELL_EVERY_SECONDS
    return found


@contextmanager
def _without_collector() -> Iterator[None]:
    """Turns off the search for reference cycles, which differences never have: it took 40 % of the CPU time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _repair(ledger: Ledger, warehouse: Warehouse, found: list[Difference]) -> list[Difference]:
    """Returns the ids whose repair did not hold, or whose DELETE is still pending after REMOVAL_SECONDS.

    Until a row with a higher version is gone, a merge may let it swallow what we or the application inserted below it.
    What was swallowed is inserted again, as Postgres says by then, and what Postgres says after that is in flight.
    """
    if not found:
        return []
    wrong = {one.key: one for one in found}
    insert(warehouse, found)
    deadline, tell_at = time.monotonic() + REMOVAL_SECONDS, time.monotonic() + TELL_EVERY_SECONDS
    asked: set[str] = set()
    hindered = {one.key for one in found if has_to_go(one)}
    while True:
        pending = take_away(ledger.connection, warehouse, hindered, asked)
        there = newest_rows(warehouse, wrong)
        left = _still_different(ledger, warehouse, [one for one in wrong.values() if there.get(one.key) != row_of(one)])
        hindered_before, hindered = hindered, {one.key for one in left if has_to_go(one)} | pending
        freed = hindered_before - hindered
        swallowed = [one for one in left if one.key in freed]
        if not (hindered or swallowed):
            return left
        if time.monotonic() > deadline:
            return [*left, *(wrong[key] for key in pending - {one.key for one in left})]
        insert(warehouse, swallowed)
        wrong |= {one.key: one for one in swallowed}
        if time.monotonic() > tell_at:
            log.info("ClickHouse still carries out the DELETE of rows of %s ids", f"{len(hindered):,}")
            tell_at += TELL_EVERY_SECONDS
        time.sleep(LOOK_EVERY_SECONDS)


def _unrepaired(ledger: Ledger, left: list[Difference]) -> MigrationError:
    examples = ", ".join(quoted(one.distinct_id) for one in left[:EXAMPLES])
    reads = "are on the new table already" if Switches(ledger.connection).reads_are_new() else "stay on the old table"
    kind: type[MigrationError] = VerifyError
    then = "Trigger the run again: it looks only at what is left."
    if waiting := sum(has_to_go(one) for one in left):
        kind = BusyError
        then = (
            f"For {waiting:,} of them, rows that contradict Postgres are still there {REMOVAL_SECONDS:.0f} s after "
            "their DELETE, which ClickHouse carries out between merges: look at system.mutations, and run SYSTEM START "
            "MERGES if merges were stopped. Trigger the run again if this one has given up meanwhile."
        )
    teams = named(sorted({one.team_id for one in left}))
    return kind(
        f"person_distinct_id2 still differs from Postgres after the repair.\n{teams.capitalize()}: "
        f"{counted(len(left), 'id')}, such as {examples}. All are in pdi2_migration.finding. Reads {reads}. {then}"
    )


def _still_different(ledger: Ledger, warehouse: Warehouse, before: list[Difference]) -> list[Difference]:
    """The ids that still differ now, without those that Postgres has changed meanwhile."""
    earlier = {one.key: one for one in before}
    now_ = differences(ledger.connection, warehouse, earlier)
    return [one for one in now_ if not one.in_flight_since(earlier[one.key])]
