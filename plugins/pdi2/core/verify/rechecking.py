"""Finds what changed in teams since they were verified, so that the switch need not compare everything again.

Every row in Postgres names the transaction that wrote it (xmin), so a plain scan finds changed rows without hashing.
Deleted rows show because fewer of the earlier rows are left: such a team is compared as a whole. So is every team that
was verified before a mutation of the new table, because what somebody's ALTER or DELETE removed leaves no newer row.
So is every team with fewer rows in the new table than it had ids when it was verified: a part was detached, dropped
or lost with a replica. And so is every team that was verified before the server started: a crash of its host loses the
newest parts, and whoever restores its disk from a snapshot starts it too.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from more_itertools import constrained_batches
from psycopg.rows import dict_row

from pdi2.core.engines import postgres
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.plan import mutations
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.state.slices import TEAMS_AT_ONCE, grouped, named
from pdi2.core.state.words import counted
from pdi2.core.verify.comparing import Key
from pdi2.core.verify.digesting import Digests, digests, in_memory_or_spilling, suspects
from pdi2.core.verify.findings import as_bytes

log = logging.getLogger(__name__)

MOST_CHANGED = 100_000
"""A team with more changed ids than this is compared as a whole."""


def now(ledger: Ledger, warehouse: Warehouse) -> dict[str, Any]:
    """Where both databases stand: ClickHouse's time in seconds, the last of somebody's mutations (null while one is
    running), and Postgres's transaction and server. Call it before the first look at a team.
    """
    running = any(not one.is_done for one in mutations.somebodys(ledger, warehouse))
    stands = {"at": warehouse.rows("now")[0][0], "mutation": None if running else mutations.last_seen(ledger)}
    return {**stands, **(postgres.execute(ledger.connection, "snapshot", None, dict_row).fetchone() or {})}


def mark(before: dict[str, Any], first: Digests, team_id: int) -> dict[str, Any]:
    """What shows a team's later changes: where the databases stood, and Postgres's rows, at the first look."""
    rows = sum(bucket.ids for (of_team, _), bucket in first.truth.items() if of_team == team_id)
    last, ids = first.row_ids.get(team_id, (0, 0))
    return {**before, "rows": rows, "ids": str(ids), "last": last}


@dataclass
class Changes:
    """Where `since` shows what changed in verified teams, and which teams are compared as a whole.

    `since`: by team, the time in seconds from which rows in the new table count as changed. `rows`: how many rows of
    Postgres changed. `whole`: by team, its new mark, once it was compared; empty before.
    """

    since: dict[int, int]
    rows: dict[int, int]
    whole: dict[int, dict[str, Any]]


def changes(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> Changes:
    """A team is compared as a whole if its changes cannot be determined or an audit has left findings open in it."""
    doubtful = ledger.with_open_findings()
    mutation, started = mutations.last_seen(ledger), warehouse.rows("started")[0][0]
    teams = postgres.execute(ledger.connection, "changed_teams").fetchall()
    there = dict(warehouse.rows("teams_of_new"))
    since = {
        team_id: max(0, int(marked_at - settings.in_flight))
        for team_id, marked_at, marked_mutation, changed, unknown, seen in teams
        if not unknown and changed <= MOST_CHANGED and team_id not in doubtful and there.get(team_id, 0) >= seen
        if marked_mutation == mutation and marked_at >= started
    }
    rows = {team_id: changed for team_id, _, _, changed, *_ in teams if team_id in since}
    return Changes(since, rows, {team_id: {} for team_id, *_ in teams if team_id not in since})


def candidates(ledger: Ledger, warehouse: Warehouse, found: Changes, stood: dict[str, Any]) -> Iterator[set[Key]]:
    """The changed ids, in portions, and of the teams in `found.whole` all ids that the digests suspect.

    Adds to `found.whole` the teams with more than MOST_CHANGED changed ids, and the marks as of `stood`.
    """
    ids = 0
    for team_ids in constrained_batches(found.since, MOST_CHANGED, TEAMS_AT_ONCE, get_len=found.rows.get, strict=False):
        changed = _changed(ledger, warehouse, found, team_ids)
        many = {team_id for team_id, listed in changed.items() if len(listed) > MOST_CHANGED}
        found.whole |= {team_id: {} for team_id in many}
        portion = {(team_id, id_) for team_id in changed.keys() - many for id_ in changed[team_id]}
        ids += len(portion)
        yield portion
    log.info(
        "Looking again at %s that changed since the verification or were repaired by it; comparing as a whole: %s",
        counted(ids, "id"),
        named(sorted(found.whole)) if found.whole else "no team",
    )
    rows = {team.team_id: team.rows_source for team in ledger.teams(found.whole)}
    for teams in grouped(rows, warehouse.max_memory_usage):
        first = digests(ledger.connection, warehouse, teams)
        found.whole |= {team_id: mark(stood, first, team_id) for team_id in teams.team_ids}
        yield from suspects(ledger.connection, warehouse, teams, first)


def _changed(ledger: Ledger, warehouse: Warehouse, found: Changes, team_ids: Sequence[int]) -> dict[int, set[bytes]]:
    """By team, the ids that anybody wrote in Postgres or the new table since its time, and the ids that were repaired
    since: if a part is lost, its repairs are lost too.

    Of a team with more than MOST_CHANGED of them, not all are listed.
    """
    changed = _touched(warehouse, {team_id: found.since[team_id] for team_id in team_ids})
    of_postgres = {"team_ids": [team_id for team_id in team_ids if found.rows[team_id]]}
    for team_id, distinct_id in postgres.execute(ledger.connection, "changed_ids", of_postgres):
        changed.setdefault(team_id, set()).add(distinct_id.encode())
    repaired = {"team_ids": list(team_ids), "most": MOST_CHANGED + 1}
    for team_id, distinct_id in postgres.execute(ledger.connection, "repaired_ids", repaired):
        changed.setdefault(team_id, set()).add(as_bytes(distinct_id))
    return changed


def _touched(warehouse: Warehouse, since: dict[int, int]) -> dict[int, set[bytes]]:
    parameters = {"team_ids": list(since), "since": list(since.values()), "most": MOST_CHANGED + 1}
    touched: dict[int, set[bytes]] = {}
    for team_id, distinct_id in in_memory_or_spilling(warehouse, "touched_ids", parameters):
        touched.setdefault(team_id, set()).add(distinct_id)
    return touched
