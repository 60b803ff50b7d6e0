"""Finds what changed in teams since they were verified, so that the switch need not compare everything again.

Every row in Postgres names the transaction that wrote it (xmin), so a plain scan finds changed rows without hashing.
Deleted rows show because fewer of the earlier rows are left: such a team is compared as a whole. So is every team that
was verified before a mutation of the new table, because what somebody's ALTER or DELETE removed leaves no newer row,
and every team that has fewer rows in the new table than it had ids when it was verified: a part was detached, dropped
or lost with a replica.
"""

import logging
from collections.abc import Iterator
from typing import Any

from psycopg.rows import dict_row

from pdi2.core.engines import postgres
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.plan import mutations
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.state.slices import grouped
from pdi2.core.verify.comparing import Key
from pdi2.core.verify.digesting import Digests, in_memory_or_spilling, suspects
from pdi2.core.verify.findings import as_bytes

log = logging.getLogger(__name__)

MOST_CHANGED = 100_000
"""A team with more changed ids than this is compared as a whole."""


def now(ledger: Ledger, warehouse: Warehouse) -> dict[str, Any]:
    """Where both databases stand: ClickHouse's time in seconds, and Postgres's transaction and server. Call it before
    the first look at a team.

    While somebody's mutation is running, its start counts as ClickHouse's time.
    """
    going = (one.began for one in mutations.somebodys(ledger, warehouse) if not one.is_done)
    at = min([warehouse.rows("now")[0][0], *going])
    return {"at": at, **(postgres.execute(ledger.connection, "snapshot", None, dict_row).fetchone() or {})}


def mark(before: dict[str, Any], first: Digests, team_id: int) -> dict[str, Any]:
    """What shows a team's later changes: where the databases stood, and Postgres's rows, at the first look."""
    rows = sum(bucket.ids for (of_team, _), bucket in first.truth.items() if of_team == team_id)
    last, ids = first.row_ids.get(team_id, (0, 0))
    return {**before, "rows": rows, "ids": str(ids), "last": last}


def changes_since(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> tuple[dict[int, int], set[int]]:
    """By team, the time in seconds from which rows in the new table count as changed; and the teams to compare as a
    whole, because their changes cannot be determined or an audit has left findings open."""
    doubtful = ledger.verified_with_open_findings()
    mutated_at = mutations.last_begun(ledger)
    teams = postgres.execute(ledger.connection, "changed_teams").fetchall()
    rows = dict(warehouse.rows("teams_of_new"))
    since = {
        team_id: int(marked_at - settings.in_flight)
        for team_id, marked_at, changed, unknown, seen in teams
        if not unknown and changed <= MOST_CHANGED and team_id not in doubtful and rows.get(team_id, 0) >= seen
    }
    since = {team_id: max(0, at) for team_id, at in since.items() if at > mutated_at}
    return since, {team_id for team_id, *_ in teams if team_id not in since}


def suspected(ledger: Ledger, warehouse: Warehouse, since: dict[int, int], as_a_whole: set[int]) -> Iterator[set[Key]]:
    """The changed ids, in portions, and of the teams in `as_a_whole` all ids that the digests suspect.

    Adds to `as_a_whole` the teams with more than MOST_CHANGED changed ids.
    """
    rows = {team.team_id: team.rows_source for team in ledger.teams([*since, *as_a_whole])}
    ids = 0
    for teams in grouped({team_id: rows[team_id] for team_id in since}, warehouse.max_memory_usage):
        changed = _changed(ledger, warehouse, {team_id: since[team_id] for team_id in teams.team_ids})
        many = {team_id for team_id, found in changed.items() if len(found) > MOST_CHANGED}
        as_a_whole |= many
        portion = {(team_id, id_) for team_id in changed.keys() - many for id_ in changed[team_id]}
        ids += len(portion)
        yield portion
    log.info(
        "%s ids are looked at again, as changed since the verification or repaired before; %s teams are compared as a "
        "whole, such as %s",
        f"{ids:,}",
        len(as_a_whole),
        sorted(as_a_whole)[:20],
    )
    for teams in grouped({team_id: rows[team_id] for team_id in as_a_whole}, warehouse.max_memory_usage):
        yield from suspects(ledger.connection, warehouse, teams)


def _changed(ledger: Ledger, warehouse: Warehouse, since: dict[int, int]) -> dict[int, set[bytes]]:
    """By team, the ids that were written in Postgres or the new table since its time, whoever wrote them, and every id
    that was ever repaired: if a part is lost, its repair is lost too.

    Of a team with more than MOST_CHANGED of them, not all are listed.
    """
    changed = _touched(warehouse, since)
    for team_id, distinct_id in postgres.execute(ledger.connection, "changed_ids", {"team_ids": list(since)}):
        changed.setdefault(team_id, set()).add(distinct_id.encode())
    for team_id, distinct_id in postgres.execute(ledger.connection, "repaired_ids", {"team_ids": list(since)}):
        changed.setdefault(team_id, set()).add(as_bytes(distinct_id))
    return changed


def _touched(warehouse: Warehouse, since: dict[int, int]) -> dict[int, set[bytes]]:
    parameters = {"team_ids": list(since), "since": list(since.values()), "most": MOST_CHANGED + 1}
    touched: dict[int, set[bytes]] = {}
    for team_id, distinct_id in in_memory_or_spilling(warehouse, "touched_ids", parameters):
        touched.setdefault(team_id, set()).add(distinct_id)
    return touched
