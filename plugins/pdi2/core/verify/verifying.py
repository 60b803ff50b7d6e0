"""Verifies whole teams against Postgres by digests, and settles id by id what the digests leave open."""

import logging
import time
from collections import Counter
from dataclasses import dataclass

from clickhouse_connect.driver.exceptions import DatabaseError

from pdi2.core.cluster.pressure import wait_while_paused
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import MigrationError, Reaction, WaitError, describe, reaction
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.state.slices import Teams, together
from pdi2.core.state.switches import Switches
from pdi2.core.verify.digesting import Digests, by_team, digests, old_differs, suspects
from pdi2.core.verify.rechecking import candidates, changes, mark, now
from pdi2.core.verify.settling import settle

log = logging.getLogger(__name__)

EMPTY = "0:0"
"""The digest of a team without ids."""


@dataclass(frozen=True)
class Compared:
    """Findings by kind, digests from before any repair, and for about how many ids per team the old reader is wrong.

    `old_differs` is None once the old table is no longer written, or if the count does not fit into memory.
    """

    found: Counter[str]
    digests: Digests
    old_differs: Counter[int] | None


def verify_together(ledger: Ledger, warehouse: Warehouse, team_ids: list[int], settings: Settings) -> list[int]:
    """Verifies small teams by shared statements; returns the copied teams that still have to be verified one by one.

    If one of the teams that share statements fails, they are all verified one by one, so that it fails alone.
    """
    rows = {team.team_id: team.rows_source for team in ledger.teams(ledger.ended(team_ids))}
    left = dict(rows)
    for teams in together(rows, warehouse.max_memory_usage):
        if len(teams.team_ids) == 1:
            continue
        wait_while_paused(ledger, teams.team_ids)
        try:
            _verify(ledger, warehouse, teams, settings)
        except (DatabaseError, MigrationError) as error:
            if isinstance(error, WaitError) or (isinstance(error, DatabaseError) and reaction(error) is Reaction.RETRY):
                raise
            log.warning("%s could not be verified together, so each is now done by itself: %s", teams, describe(error))
        else:
            for team_id in teams.team_ids:
                del left[team_id]
    return list(left)


def verify_team(ledger: Ledger, warehouse: Warehouse, team_id: int, settings: Settings) -> Counter[str]:
    return _verify(ledger, warehouse, Teams((team_id,), ledger.team(team_id).rows_source), settings)


def _verify(ledger: Ledger, warehouse: Warehouse, teams: Teams, settings: Settings) -> Counter[str]:
    """Compares, repairs, compares again; returns the number of findings by kind. Raises VerifyError if some remain."""
    began, began_at = time.monotonic(), ledger.clock()
    before = now(ledger, warehouse)
    compared = compare(ledger, warehouse, teams, settings)
    agreed = digests(ledger.connection, warehouse, teams) if compared.found else compared.digests
    seen, truth = by_team(agreed.seen), by_team(agreed.truth)
    tombstones: Counter[int] = Counter()
    for (team_id, _), bucket in agreed.seen.items():
        tombstones[team_id] += bucket.tombstones
    verified = [
        {
            "team_id": team_id,
            "old_differs": None if compared.old_differs is None else compared.old_differs[team_id],
            "mark": mark(before, compared.digests, team_id),
            "digest": seen.get(team_id, EMPTY),
            "truth_digest": truth.get(team_id, EMPTY),
            "tombstones": tombstones[team_id],
            "seconds": (time.monotonic() - began) / len(teams.team_ids),
        }
        for team_id in teams.team_ids
    ]
    ledger.set_verified(verified, began_at)
    Switches(ledger.connection).follow_ledger()
    return compared.found


def compare(ledger: Ledger, warehouse: Warehouse, teams: Teams, settings: Settings) -> Compared:
    """Compares every id of the teams with Postgres."""
    first = digests(ledger.connection, warehouse, teams)
    found = settle(ledger, warehouse, suspects(ledger.connection, warehouse, teams, first), settings)
    wrong = _wrong_in_old(warehouse, teams) if Switches(ledger.connection).old_is_written() else None
    log.info(
        "Compared %s with Postgres; findings: %s; the old table's reader differs for %s ids",
        teams,
        ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in found.items()) or "none",
        "(not counted)" if wrong is None else f"about {wrong.total():,}",
    )
    return Compared(found, first, wrong)


def _wrong_in_old(warehouse: Warehouse, teams: Teams) -> Counter[int] | None:
    """Only information, so it is left out if it does not fit into memory."""
    try:
        return old_differs(warehouse, teams)
    except DatabaseError as error:
        if reaction(error) is not Reaction.SPLIT:
            raise
        log.warning("How many ids the old table's reader gets wrong was not counted: %s", describe(error))
        return None


def verify_changes(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> Counter[str]:
    """Compares and repairs what changed in teams since they were verified; returns the number of findings by kind.

    Teams with open findings, such as those of an audit, are compared as a whole. Raises VerifyError if some remain.
    """
    began, stood = ledger.clock(), now(ledger, warehouse)
    changed = changes(ledger, warehouse, settings)
    found = settle(ledger, warehouse, candidates(ledger, warehouse, changed, stood), settings)
    ledger.compared_again(changed.whole, began)
    return found
