"""Proves teams against Postgres, and repairs the new table where it is wrong. Nothing else is ever written."""

import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from time import sleep

from clickhouse_connect.driver.exceptions import DatabaseError
from more_itertools import chunked, flatten

from pdi2.core.cluster.pressure import TELL_EVERY_SECONDS, wait_while_paused
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import BusyError, MigrationError, Reaction, WaitError, describe, reaction
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.state.slices import Teams, named, together
from pdi2.core.state.switches import Switches
from pdi2.core.state.words import counted, quoted
from pdi2.core.verify import findings
from pdi2.core.verify.comparing import Difference, Key, differences, old_answers
from pdi2.core.verify.digesting import Digests, by_team, digests, old_differs, suspects
from pdi2.core.verify.rechecking import changed_ids, mark, now
from pdi2.core.verify.repairing import has_to_go, insert, take_away

log = logging.getLogger(__name__)

EXAMPLES = 5
EMPTY = "0:0"
"""The digest of a team without ids."""
HELD_AT_ONCE = 200_000
"""Differences that share one wait: 100 MB of them."""
REPAIRED_AT_ONCE = 20_000
REMOVAL_SECONDS = 300.0
"""How long ClickHouse may take to carry out a DELETE; it does so between merges."""
LOOK_EVERY_SECONDS = 0.2


class VerifyError(MigrationError):
    """Differences from Postgres remain after the repair."""


@dataclass(frozen=True)
class Compared:
    """Findings by kind, the digests of before any repair, and by team for about how many ids the old reader is wrong.

    The latter is None once the old table is no longer written.
    """

    found: Counter[str]
    digests: Digests
    old_differs: Counter[int] | None


def verify_together(ledger: Ledger, warehouse: Warehouse, team_ids: list[int], settings: Settings) -> list[int]:
    """Verifies small teams by shared statements; returns the copied ones that are left to be verified alone.

    Where a team of those that share fails, all of them are: one fails alone.
    """
    rows = {team.team_id: team.rows_source for team in ledger.teams_of(ledger.ended(team_ids))}
    left = dict(rows)
    for teams in together(rows, warehouse.max_memory_usage):
        if len(teams.ids) == 1:
            continue
        wait_while_paused(ledger, teams.ids)
        try:
            verify(ledger, warehouse, teams, settings)
        except (DatabaseError, MigrationError) as error:
            if isinstance(error, WaitError) or (isinstance(error, DatabaseError) and reaction(error) is Reaction.RETRY):
                raise
            log.warning("%s could not be verified together, so each is now done by itself: %s", teams, describe(error))
        else:
            for team_id in teams.ids:
                del left[team_id]
    return list(left)


def verify_team(ledger: Ledger, warehouse: Warehouse, team_id: int, settings: Settings) -> Counter[str]:
    return verify(ledger, warehouse, Teams((team_id,), ledger.team(team_id).rows_source), settings)


def verify(ledger: Ledger, warehouse: Warehouse, teams: Teams, settings: Settings) -> Counter[str]:
    """Compares, repairs, compares again; returns findings by kind. Raises VerifyError where some remain."""
    began = time.monotonic()
    before = now(ledger, warehouse)
    compared = compare(ledger, warehouse, teams, settings)
    agreed = digests(ledger.connection, warehouse, teams) if compared.found else compared.digests
    seen, truth = by_team(agreed.seen), by_team(agreed.truth)
    tombstones: Counter[int] = Counter()
    for (team_id, _), bucket in agreed.seen.items():
        tombstones[team_id] += bucket.tombstones
    ledger.set_verified(
        {
            "team_id": team_id,
            "old_differs": None if compared.old_differs is None else compared.old_differs[team_id],
            "mark": mark(before, compared.digests, team_id),
            "digest": seen.get(team_id, EMPTY),
            "truth_digest": truth.get(team_id, EMPTY),
            "tombstones": tombstones[team_id],
            "seconds": (time.monotonic() - began) / len(teams.ids),
        }
        for team_id in teams.ids
    )
    Switches(ledger.connection).follow_ledger()
    return compared.found


def compare(ledger: Ledger, warehouse: Warehouse, teams: Teams, settings: Settings) -> Compared:
    """Every id of the teams against Postgres."""
    first = digests(ledger.connection, warehouse, teams)
    found = settle(ledger, warehouse, suspects(ledger.connection, warehouse, teams, first), settings)
    wrong = old_differs(warehouse, teams) if Switches(ledger.connection).old_is_written() else None
    log.info(
        "Compared %s with Postgres; findings: %s; the old table's reader differs for %s ids",
        teams,
        ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in found.items()) or "none",
        "(no longer written)" if wrong is None else f"about {wrong.total():,}",
    )
    return Compared(found, first, wrong)


def verify_changes(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> Counter[str]:
    """Compares and repairs what changed in the verified teams since; findings by kind. Raises VerifyError."""
    return settle(ledger, warehouse, changed_ids(ledger, warehouse, settings), settings)


def settle(ledger: Ledger, warehouse: Warehouse, suspected: Iterable[set[Key]], settings: Settings) -> Counter[str]:
    """Of the suspected ids, those that still differ after the in-flight window count, and are repaired if they may be.

    One wait for all of them, or for every HELD_AT_ONCE. Raises VerifyError where a repair did not hold.
    """
    found: Counter[str] = Counter()
    looks = flatten(differences(ledger.connection, warehouse, keys) for keys in suspected)
    for held in chunked(looks, HELD_AT_ONCE):
        sleep(settings.in_flight)
        for before in chunked(held, REPAIRED_AT_ONCE):
            found.update(one.kind.value for one in _judge(ledger, warehouse, before, settings.repair))
    return found


def _judge(ledger: Ledger, warehouse: Warehouse, before: list[Difference], repairs: bool) -> list[Difference]:
    """Those of the first look that are wrong; the ledger tells of them, and they are repaired if they may be."""
    found = _still_different(ledger, warehouse, before)
    keys = {one.key for one in found}
    old = old_answers(warehouse, keys) if found and Switches(ledger.connection).old_is_written() else {}
    left = _repair(ledger, warehouse, found) if repairs else found
    findings.record(ledger, found, old, keys if repairs else set(), keys - {one.key for one in left})
    if repairs and left:
        raise _unrepaired(ledger, left)
    return found


def _repair(ledger: Ledger, warehouse: Warehouse, wrong: list[Difference]) -> list[Difference]:
    """Returns those of which the repair did not hold, or still waits for a DELETE after REMOVAL_SECONDS.

    Until a row that stands above is gone, a merge lets it swallow what was inserted below, by us or by the application:
    then that is inserted once more.
    """
    if not wrong:
        return []
    insert(warehouse, wrong)
    deadline, tell_at = time.monotonic() + REMOVAL_SECONDS, time.monotonic() + TELL_EVERY_SECONDS
    asked: set[str] = set()
    hindered = {one.key for one in wrong if has_to_go(one)}
    while True:
        take_away(ledger.connection, warehouse, hindered, asked)
        left = _still_different(ledger, warehouse, wrong)
        hindered_before, hindered = hindered, {one.key for one in left if has_to_go(one)}
        freed = hindered_before - hindered
        swallowed = [one for one in left if one.key in freed]
        if not (hindered or swallowed) or time.monotonic() > deadline:
            return left
        insert(warehouse, swallowed)
        if time.monotonic() > tell_at:
            log.info("ClickHouse still carries out the DELETE of rows of %s ids", f"{len(hindered):,}")
            tell_at += TELL_EVERY_SECONDS
        time.sleep(LOOK_EVERY_SECONDS)


def _unrepaired(ledger: Ledger, left: list[Difference]) -> MigrationError:
    examples = ", ".join(quoted(one.distinct_id) for one in left[:EXAMPLES])
    reads = "are on the new table already" if Switches(ledger.connection).reads_are_new() else "stay on the old table"
    kind: type[MigrationError] = VerifyError
    then = "Trigger the run again: only what is not verified is looked at."
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
    """Those of the ids that still differ now, but for those that Postgres has moved on meanwhile."""
    earlier = {one.key: one for one in before}
    now_ = differences(ledger.connection, warehouse, earlier)
    return [one for one in now_ if not one.in_flight_since(earlier[one.key])]
