"""Proves a team against Postgres, and repairs the new table where it is wrong. Nothing else is ever written."""

import logging
import time
from itertools import chain
from typing import Any

from psycopg.types.json import Jsonb

from pdi2.core.clickhouse import Warehouse
from pdi2.core.comparing import Difference, Kind, contradictions, differences, suspects
from pdi2.core.failures import MigrationError
from pdi2.core.ledger import Ledger
from pdi2.core.settings import Settings
from pdi2.core.switches import Switches

log = logging.getLogger(__name__)

TOMBSTONE_STEP = 100
CORRECTION = -1
COLUMNS = [
    "team_id",
    "distinct_id",
    "person_id",
    "is_deleted",
    "version",
    "_timestamp",
    "_offset",
    "_partition",
]
EXAMPLES = 5


class VerifyError(MigrationError):
    """Differences from Postgres remain after the repair."""


def verify_team(ledger: Ledger, warehouse: Warehouse, team_id: int, settings: Settings) -> dict[str, int]:
    """Compares, repairs, compares again; returns findings by kind. Raises VerifyError where some remain."""
    team = ledger.team(team_id)
    found: dict[str, int] = {}
    contradictory = contradictions(warehouse, team_id)
    for ids in chain([contradictory], suspects(ledger.connection, warehouse, team, "new")):
        for finding in _settled(ledger, warehouse, team_id, ids, settings):
            found[finding.kind] = found.get(finding.kind, 0) + 1
    old_differs = sum(
        len(ids) - len(differences(ledger.connection, warehouse, team_id, ids))
        for ids in suspects(ledger.connection, warehouse, team, "old")
    )
    with ledger.transaction():
        ledger.set_verified(team_id, old_differs)
    Switches(ledger.connection).follow_ledger()
    log.info(
        "Team %s agrees with Postgres; findings: %s; the old table's reader differs for %s ids",
        team_id,
        found or "none",
        old_differs,
    )
    return found


def _settled(
    ledger: Ledger, warehouse: Warehouse, team_id: int, ids: set[bytes], settings: Settings
) -> list[Difference]:
    """A difference counts if it is still there after the in-flight window; what counts is repaired."""
    first = differences(ledger.connection, warehouse, team_id, ids)
    if not first:
        return []
    time.sleep(settings.in_flight_seconds)
    findings = differences(ledger.connection, warehouse, team_id, {one.distinct_id for one in first})
    wrong = [finding for finding in findings if finding.kind != Kind.AHEAD]
    _repair(warehouse, team_id, wrong)
    after = differences(ledger.connection, warehouse, team_id, {one.distinct_id for one in wrong})
    left = {one.distinct_id for one in after if one.kind != Kind.AHEAD}
    ledger.add_findings(
        _line(team_id, finding, repaired=finding in wrong and finding.distinct_id not in left) for finding in findings
    )
    if left:
        examples = ", ".join(repr(_readable(distinct_id)) for distinct_id in sorted(left)[:EXAMPLES])
        raise VerifyError(
            f"Team {team_id}: {len(left):,} ids still differ from Postgres after their repair, among them "
            f"{examples}. They are in pdi2_migration.finding. Reads stay on the old table. Trigger the run again: "
            "only what is not verified is looked at."
        )
    return findings


def _repair(warehouse: Warehouse, team_id: int, wrong: list[Difference]) -> None:
    """Inserts what Postgres says with Postgres's version, and takes away what contradicts it at that version."""
    if not wrong:
        return
    now = int(time.time())
    warehouse.insert("person_distinct_id2", COLUMNS, [_truth_row(team_id, one, now) for one in wrong])
    for one in wrong:
        if one.truth and one.seen and one.seen.version == one.truth.version:
            warehouse.execute(
                "delete_rivals",
                {
                    "team_id": team_id,
                    "distinct_id": one.distinct_id.hex(),
                    "version": one.truth.version,
                    "person_id": str(one.truth.person_id),
                },
            )


def _truth_row(team_id: int, one: Difference, now: int) -> tuple[Any, ...]:
    if one.truth is not None:
        return (team_id, one.distinct_id, one.truth.person_id, 0, one.truth.version, now, 0, 0)
    assert one.seen is not None  # noqa: S101  (an id that neither side has is no difference)
    version = one.seen.version + TOMBSTONE_STEP if one.seen.version >= 0 else CORRECTION
    return (team_id, one.distinct_id, one.seen.person_id, 1, version, now, 0, 0)


def _line(team_id: int, one: Difference, repaired: bool) -> dict[str, Any]:
    seen = one.seen and {
        "person_id": str(one.seen.person_id),
        "is_deleted": one.seen.is_deleted,
        "version": one.seen.version,
    }
    truth = one.truth and {"person_id": str(one.truth.person_id), "version": one.truth.version}
    return {
        "team_id": team_id,
        "distinct_id": _readable(one.distinct_id),
        "kind": one.kind,
        "repaired": repaired,
        "clickhouse": Jsonb(seen) if seen else None,
        "postgres": Jsonb(truth) if truth else None,
    }


def _readable(distinct_id: bytes) -> str:
    return distinct_id.decode(errors="backslashreplace").replace("\0", "\\x00")
