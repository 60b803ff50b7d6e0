"""Proves a team against Postgres, and repairs the new table where it is wrong. Nothing else is ever written."""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from time import monotonic, sleep
from typing import Any
from uuid import UUID

from clickhouse_connect.driver.exceptions import DatabaseError
from more_itertools import chunked
from psycopg.types.json import Jsonb

from pdi2.core.clickhouse import Warehouse
from pdi2.core.comparing import (
    Difference,
    Digests,
    Kind,
    Seen,
    by_team,
    differences,
    digests,
    old_answers,
    old_differs,
    suspects,
)
from pdi2.core.failures import BusyError, MigrationError, Reaction, WaitError, describe, reaction
from pdi2.core.ledger import Ledger
from pdi2.core.pressure import wait_while_paused
from pdi2.core.rechecking import changed_ids, marks
from pdi2.core.repairing import REMOVAL_SECONDS, repair, rivals, row_of
from pdi2.core.settings import Settings
from pdi2.core.slices import Teams, together
from pdi2.core.switches import Switches

log = logging.getLogger(__name__)

EXAMPLES = 5
EMPTY = "0:0"
"""The digest of a team without ids."""
HELD_AT_ONCE = 50_000
"""Differences that share one wait: 26 MB of them."""
REPAIRED_AT_ONCE = 10_000


class VerifyError(MigrationError):
    """Differences from Postgres remain after the repair."""


@dataclass(frozen=True)
class Compared:
    """Findings by kind, the digests of before any repair, and by team for how many ids the old table's reader is wrong.

    The latter is None once the old table is no longer written.
    """

    found: dict[str, int]
    digests: Digests
    old_differs: Counter[int] | None


@dataclass(frozen=True)
class Findings:
    """How many by kind; and by team how many are left as they are while the readers of both tables differ."""

    kinds: Counter[str] = field(default_factory=Counter)
    left: Counter[int] = field(default_factory=Counter)


def verify_together(ledger: Ledger, warehouse: Warehouse, team_ids: list[int], settings: Settings) -> list[int]:
    """Verifies small teams by shared statements; returns the copied ones that are left to be verified alone.

    Where a team of those that share fails, all of them are: one fails alone.
    """
    rows = {team.team_id: team.rows_source for team in ledger.teams_of(ledger.ended(team_ids))}
    left = dict(rows)
    for teams in together(rows, warehouse.max_memory_usage):
        wait_while_paused(ledger, teams.ids)
        try:
            verify(ledger, warehouse, teams, settings)
        except (DatabaseError, MigrationError) as error:
            if isinstance(error, WaitError) or (isinstance(error, DatabaseError) and reaction(error) is Reaction.RETRY):
                raise
            log.warning("Of %s some could not be verified together, so each is now alone: %s", teams, describe(error))
        else:
            for team_id in teams.ids:
                del left[team_id]
    return list(left)


def verify_team(ledger: Ledger, warehouse: Warehouse, team_id: int, settings: Settings) -> dict[str, int]:
    return verify(ledger, warehouse, Teams((team_id,), ledger.team(team_id).rows_source), settings)


def verify(ledger: Ledger, warehouse: Warehouse, teams: Teams, settings: Settings) -> dict[str, int]:
    """Compares, repairs, compares again; returns findings by kind. Raises VerifyError where some remain."""
    began = monotonic()
    before = marks(ledger, warehouse, teams)
    compared = compare(ledger, warehouse, teams, settings)
    agreed = digests(ledger.connection, warehouse, teams) if compared.found else compared.digests
    seen, truth = by_team(agreed.seen), by_team(agreed.truth)
    ledger.set_verified(
        {
            "team_id": team_id,
            "old_differs": None if compared.old_differs is None else compared.old_differs[team_id],
            "mark": before[team_id],
            "digest": seen.get(team_id, EMPTY),
            "truth_digest": truth.get(team_id, EMPTY),
            "seconds": (monotonic() - began) / len(teams.ids),
        }
        for team_id in teams.ids
    )
    Switches(ledger.connection).follow_ledger()
    return compared.found


def compare(ledger: Ledger, warehouse: Warehouse, teams: Teams, settings: Settings) -> Compared:
    """Every id of the teams against Postgres."""
    first = digests(ledger.connection, warehouse, teams)
    found = settle(ledger, warehouse, suspects(ledger.connection, warehouse, teams, first), settings)
    wrong = None
    if Switches(ledger.connection).old_is_written():
        wrong = old_differs(warehouse, teams) - found.left
    log.info(
        "Compared %s with Postgres; findings: %s; the old table's reader differs for %s ids",
        teams,
        dict(found.kinds) or "none",
        "(no longer written)" if wrong is None else wrong.total(),
    )
    return Compared(dict(found.kinds), first, wrong)


def verify_changes(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> dict[str, int]:
    """Compares and repairs what changed in the verified teams since; findings by kind. Raises VerifyError."""
    return dict(settle(ledger, warehouse, changed_ids(ledger, warehouse, settings), settings).kinds)


def settle(
    ledger: Ledger, warehouse: Warehouse, suspected: Iterable[tuple[int, set[bytes]]], settings: Settings
) -> Findings:
    """Of the ids, by team, those that still differ after the in-flight window count, and are repaired if they may be.

    One wait for all of them, or for every HELD_AT_ONCE. Raises VerifyError where a repair did not hold.
    """
    found = Findings()
    looks = (one for team_id, ids in suspected for one in differences(ledger.connection, warehouse, team_id, ids))
    for held in chunked(looks, HELD_AT_ONCE):
        sleep(settings.in_flight)
        for team_id, of_team in groupby(held, key=lambda one: one.team_id):
            for before in chunked(of_team, REPAIRED_AT_ONCE):
                _judge(ledger, warehouse, team_id, before, settings.repair, found)
    return found


def _judge(
    ledger: Ledger, warehouse: Warehouse, team_id: int, before: list[Difference], repairs: bool, found: Findings
) -> None:
    """What is found among the ids is told in the ledger, repaired, and added to `found`."""
    findings = _still_different(ledger, warehouse, team_id, before)
    wrong = [finding for finding in findings if repairs and finding.kind is not Kind.AHEAD]
    old: dict[bytes, UUID] = {}
    if findings and Switches(ledger.connection).old_is_written():
        old = old_answers(warehouse, team_id, [finding.distinct_id for finding in findings])
    waiting = repair(warehouse, team_id, wrong)
    after = _still_different(ledger, warehouse, team_id, wrong)
    left = {one.distinct_id for one in after if one.kind is not Kind.AHEAD}
    touched = {finding.distinct_id for finding in wrong}
    repaired = touched - left
    ledger.add_findings(
        _line(one, old.get(one.distinct_id), one.distinct_id in touched, one.distinct_id in repaired)
        for one in findings
    )
    if left:
        raise _unrepaired(ledger, team_id, left, waiting)
    found.kinds.update(finding.kind for finding in findings)
    found.left[team_id] += sum(
        one.person != old.get(one.distinct_id) for one in findings if one.distinct_id not in touched
    )


def _unrepaired(ledger: Ledger, team_id: int, left: set[bytes], waiting: set[bytes]) -> MigrationError:
    examples = ", ".join(repr(_readable(distinct_id)) for distinct_id in sorted(left)[:EXAMPLES])
    reads = "are on the new table already" if Switches(ledger.connection).reads_are_new() else "stay on the old table"
    kind: type[MigrationError] = VerifyError
    then = "Trigger the run again: only what is not verified is looked at."
    if waiting:
        kind = BusyError
        then = (
            f"Of {len(waiting):,} of them, rows that contradict Postgres are still there {REMOVAL_SECONDS:.0f} s "
            "after their DELETE, which ClickHouse carries out between merges: see system.mutations, and SYSTEM START "
            "MERGES if merges were stopped. It is done then; trigger the run again if this one has given up."
        )
    return kind(
        f"Team {team_id}: {len(left):,} ids still differ from Postgres after their repair, among them {examples}. They "
        f"are in pdi2_migration.finding. Reads {reads}. {then}"
    )


def _still_different(ledger: Ledger, warehouse: Warehouse, team_id: int, before: list[Difference]) -> list[Difference]:
    """Those of the ids that still differ now, but for those that Postgres has moved on meanwhile."""
    earlier = {one.distinct_id: one for one in before}
    now = differences(ledger.connection, warehouse, team_id, set(earlier))
    return [one for one in now if not one.in_flight_since(earlier[one.distinct_id])]


def _line(one: Difference, old: UUID | None, touched: bool, repaired: bool) -> dict[str, Any]:
    """What the three said of the id, what was done, and the row written."""
    return {
        "team_id": one.team_id,
        "distinct_id": _readable(one.distinct_id),
        "kind": one.kind,
        "repaired": repaired,
        "old": Jsonb({"person_id": str(old)}) if old else None,
        "clickhouse": _row(one.seen) if one.seen else None,
        "postgres": Jsonb({"person_id": str(one.truth.person_id), "version": one.truth.version}) if one.truth else None,
        "action": _action(one) if touched else "left alone",
        "written": _row(row_of(one)) if touched else None,
    }


def _action(one: Difference) -> str:
    if one.truth is None:
        return "tombstoned"
    return "inserted, and what contradicted it removed" if rivals(one) else "inserted"


def _row(row: Seen) -> Jsonb:
    return Jsonb({"person_id": str(row.person_id), "is_deleted": row.is_deleted, "version": row.version})


def _readable(distinct_id: bytes) -> str:
    """As it is; as Postgres writes bytes, `\\x00ff`, where it is no text or could be taken for such bytes."""
    try:
        text = distinct_id.decode()
    except UnicodeDecodeError:
        return f"\\x{distinct_id.hex()}"
    return f"\\x{distinct_id.hex()}" if "\0" in text or text.startswith("\\x") else text
