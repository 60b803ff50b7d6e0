"""Finds what changed in teams since they were verified, so that the switch need not compare everything again.

Every row in Postgres names the transaction that wrote it (xmin), which a plain scan finds without hashing. Deleted rows
show because fewer of the earlier rows are left: such a team is compared as a whole. So is every team that was verified
before a mutation of the new table, because what somebody's ALTER or DELETE removed leaves no newer row, and every team
of which the new table has fewer rows than a reader saw ids: a part was detached, dropped or lost with a replica.
"""

import logging
from collections.abc import Iterator

from more_itertools import chunked

from pdi2.core.engines import postgres
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.plan import mutations
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.state.slices import TEAMS_AT_ONCE, grouped
from pdi2.core.verify.comparing import Key
from pdi2.core.verify.digesting import Digests, in_memory_or_spilling, suspects

log = logging.getLogger(__name__)

MOST_CHANGED = 100_000
"""A team with more changed ids than this is compared as a whole."""


def now(ledger: Ledger, warehouse: Warehouse) -> tuple[int, int]:
    """Where both databases stand: ClickHouse's time in seconds and Postgres's transaction. Call it before the first
    look at a team.

    While somebody's mutation goes on, ClickHouse stands where it began.
    """
    going = (one.began for one in mutations.somebodys(ledger, warehouse) if not one.is_done)
    at = min([warehouse.rows("now")[0][0], *going])
    return at, postgres.value(ledger.connection, "snapshot")


def mark(before: tuple[int, int], first: Digests, team_id: int) -> dict[str, int | str]:
    """What shows a team's later changes: where the databases stood, and Postgres's rows, at the first look."""
    at, xid = before
    rows = sum(bucket.ids for (of_team, _), bucket in first.truth.items() if of_team == team_id)
    last, ids = first.row_ids.get(team_id, (0, 0))
    return {"at": at, "xid": xid, "rows": rows, "ids": str(ids), "last": last}


def changes(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> tuple[dict[int, set[bytes]], list[int]]:
    """The ids by team that were written in Postgres or the new table since the verification, and the teams that are
    compared as a whole, because their changes cannot be told or an audit has left open findings in them."""
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
    changed = _touched(warehouse, since)
    for team_id, distinct_id in postgres.execute(ledger.connection, "changed_ids", {"team_ids": list(since)}):
        changed.setdefault(team_id, set()).add(distinct_id.encode())
    by_id = {team_id: ids for team_id, ids in changed.items() if len(ids) <= MOST_CHANGED}
    as_a_whole = [team_id for team_id, *_ in teams if team_id not in since or team_id in changed.keys() - by_id.keys()]
    log.info(
        "Since the verification %s ids of %s teams changed; %s teams are compared as a whole: %s",
        sum(map(len, by_id.values())),
        len(by_id),
        len(as_a_whole),
        as_a_whole[:20],
    )
    return by_id, as_a_whole


def suspected(
    ledger: Ledger, warehouse: Warehouse, by_id: dict[int, set[bytes]], as_a_whole: list[int]
) -> Iterator[set[Key]]:
    """The changed ids, in portions, and of the other teams all ids that the digests suspect."""
    for portion in chunked(by_id.items(), TEAMS_AT_ONCE):
        yield {(team_id, id_) for team_id, ids in portion for id_ in ids}
    rows = {team.team_id: team.rows_source for team in ledger.teams(as_a_whole)}
    for teams in grouped(rows, warehouse.max_memory_usage):
        yield from suspects(ledger.connection, warehouse, teams)


def _touched(warehouse: Warehouse, since: dict[int, int]) -> dict[int, set[bytes]]:
    """By team, the ids that the new table has newer rows of, whoever wrote them.

    If a team has more than MOST_CHANGED of them, not all are listed.
    """
    if not since:
        return {}
    parameters = {"since": min(since.values()), "most": MOST_CHANGED + 1}
    touched: dict[int, dict[bytes, int]] = {team_id: {} for team_id in since}
    for team_id, distinct_id, at in in_memory_or_spilling(warehouse, "touched_ids", parameters):
        if team_id in since:
            touched[team_id][distinct_id] = at
    return {
        team_id: found
        for team_id, ids in touched.items()
        for cut_off in [len(ids) > MOST_CHANGED]
        if (found := {id_ for id_, at in ids.items() if cut_off or at >= since[team_id]})
    }
