"""Finds what changed in teams since they were verified, so that the switch need not compare everything again.

Every row in Postgres names the transaction that wrote it (xmin), which a plain scan finds without hashing. Deleted rows
show because fewer of the earlier rows are left: such a team is compared as a whole. So is every team that was verified
before a mutation of the new table, because what somebody's ALTER or DELETE removed leaves no newer row.
"""

import logging
from collections.abc import Iterator

from more_itertools import chunked

from pdi2.core.engines import postgres
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.plan.clickhouse_checks import mutations
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.state.slices import TEAMS_AT_ONCE, Teams
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
    at = warehouse.rows("now")[0][0]
    at = min([at, *(one.began for one in mutations(warehouse) if not (one.is_done or one.is_ours))])
    return at, postgres.value(ledger.connection, "snapshot")


def mark(before: tuple[int, int], first: Digests, team_id: int) -> dict[str, int | str]:
    """What shows a team's later changes: where the databases stood, and Postgres's rows, at the first look."""
    at, xid = before
    rows = sum(bucket.ids for (of_team, _), bucket in first.truth.items() if of_team == team_id)
    last, ids = first.row_ids.get(team_id, (0, 0))
    return {"at": at, "xid": xid, "rows": rows, "ids": str(ids), "last": last}


def changed_ids(ledger: Ledger, warehouse: Warehouse, settings: Settings, doubtful: set[int]) -> Iterator[set[Key]]:
    """Ids of verified teams, in portions, that were written in Postgres or the new table since the verification.

    Of `doubtful` teams, and of those whose changes cannot be told, all ids that the digests suspect.
    """
    teams = postgres.execute(ledger.connection, "changed_teams").fetchall()
    mutated_at = max((one.began for one in mutations(warehouse) if not one.is_ours), default=-1)
    since = {
        team_id: max(0, int(marked_at - settings.in_flight))
        for team_id, marked_at, changed, unknown in teams
        if not unknown and changed <= MOST_CHANGED and team_id not in doubtful and marked_at > mutated_at
    }
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
    for portion in chunked(by_id.items(), TEAMS_AT_ONCE):
        yield {(team_id, id_) for team_id, ids in portion for id_ in ids}
    for team_id in as_a_whole:
        team = Teams((team_id,), ledger.team(team_id).rows_source)
        yield from suspects(ledger.connection, warehouse, team)


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
