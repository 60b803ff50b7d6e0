"""Which teams there are, and how they are shared out among Airflow's mapped tasks."""

import itertools
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from pdi2.core.copy.copying import SLICE_SECONDS
from pdi2.core.copy.pieces import Budget
from pdi2.core.engines import postgres
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.measuring import Cost
from pdi2.core.state.ledger import Ledger, TeamStatus
from pdi2.core.state.settings import Settings
from pdi2.core.state.slices import SMALL_ROWS, TEAMS_AT_ONCE, Slice, cut, named
from pdi2.core.state.switches import COPY_SHARE, Switches
from pdi2.core.state.words import counted

log = logging.getLogger(__name__)

LISTED = 20
COPY_TO_TELLING = 8
"""How much longer a whole copy takes than its first step, telling complex ids apart: about 7 to 9 times, measured with
12M rows on ClickHouse 26.9."""


@dataclass(frozen=True)
class Batch:
    """The teams of one mapped task; the label is the task's name in Airflow's UI."""

    team_ids: list[int]
    rows: int

    @property
    def label(self) -> str:
        return f"{named(self.team_ids)} · {counted(self.rows, 'row')}" if self.team_ids else "verified already"


def rows_by_team(connection: Connection[Any], warehouse: Warehouse, statement: str = "teams") -> dict[int, int]:
    """Rows in the old table for every team that either table or Postgres knows, largest first.

    With the statement `teams_of_new` the old table is not read, and the rows are those in the new one.
    """
    rows = dict(warehouse.rows(statement))
    for (team_id,) in postgres.execute(connection, "team_ids"):
        rows.setdefault(team_id, 0)
    return dict(sorted(rows.items(), key=lambda item: (-item[1], item[0])))


def known(ledger: Ledger, warehouse: Warehouse) -> dict[int, int]:
    """The same for the teams of the ledger too: one that was planned may have lost all its rows since, everywhere."""
    return dict.fromkeys((team.team_id for team in ledger.teams()), 0) | rows_by_team(ledger.connection, warehouse)


def chosen(rows: dict[int, int], settings: Settings) -> dict[int, int]:
    """The teams that this run is for."""
    if settings.team_ids is None:
        return rows
    return {team_id: count for team_id, count in rows.items() if team_id in settings.team_ids}


def gone(connection: Connection[Any], team_ids: Iterable[int]) -> list[int]:
    """The teams that Postgres no longer knows: they have neither a row in posthog_team nor an id."""
    return [team_id for (team_id,) in postgres.execute(connection, "teams_gone", {"team_ids": list(team_ids)})]


def freeze(ledger: Ledger, warehouse: Warehouse, settings: Settings, most_batches: int) -> list[Batch]:
    """Writes the list of teams to the ledger; returns those not verified yet, in at most `most_batches` batches.

    A run that plans again gets no fewer batches than before, if need be empty ones: Airflow 3.1 and 3.2 end a run as
    deadlocked in which a mapped task has become shorter.
    """
    before = ledger.latest("planned") or {}
    fewest = before.get("batches", 0) if before.get("run") == ledger.airflow_run else 0
    wanted = chosen(known(ledger, warehouse), settings)
    ledger.plan(wanted)
    left = {
        team.team_id: team.rows_source
        for team in ledger.teams()
        if team.team_id in wanted and team.status != TeamStatus.VERIFIED
    }
    _leave_out(ledger, gone(ledger.connection, left))
    batches = share_out(left, most_batches)
    batches += [Batch([], 0)] * (fewest - len(batches))
    ledger.record(
        "planned",
        run=ledger.airflow_run,
        teams=len(left),
        rows=sum(left.values()),
        verified_before=len(wanted) - len(left),
        batches=len(batches),
    )
    ledger.remember_tasks(batch.team_ids for batch in batches)
    Switches(ledger.connection).follow_ledger()
    return batches


def _leave_out(ledger: Ledger, team_ids: list[int]) -> None:
    """Marks these teams as copied without copying them; verify still checks that the new table shows no id of them."""
    lowers = {team_id: ledger.checkpoint(team_id) for team_id in team_ids}
    left = {Slice(team_id, lower, None): 0 for team_id, lower in lowers.items() if lower is not None}
    ledger.finish_slices(left, Cost())
    ledger.set_copied(team_ids)
    if team_ids:
        log.info("%s", _not_copied(team_ids))
        ledger.record("teams_left_out", team_ids=team_ids)


def _not_copied(team_ids: list[int]) -> str:
    listed = ", ".join(map(str, team_ids[:LISTED])) + (", ..." if len(team_ids) > LISTED else "")
    return (
        f"Not copied, because Postgres no longer knows them: {counted(len(team_ids), 'team')} ({listed}). They "
        "have no row in posthog_team and no id; verify makes sure that the new table shows nothing of them."
    )


def share_out(rows: dict[int, int], most_batches: int) -> list[Batch]:
    """Puts each team into a batch of its own, or if there are too many teams, lets them share batches.

    Then the largest teams that are not small get up to half of the batches, one each. All others share as few batches
    as the small teams' statements need, and large ones among them are spread over different batches if possible.
    """
    teams = list(rows)
    alone = len(teams)
    if alone > most_batches:
        alone = min(sum(count > SMALL_ROWS for count in rows.values()), most_batches // 2)
    groups = [[team_id] for team_id in teams[:alone]]
    shared = teams[alone:]
    large = sum(rows[team_id] > SMALL_ROWS for team_id in shared)
    sharers = min(most_batches - alone, max(large, math.ceil(len(shared) / TEAMS_AT_ONCE)))
    groups += [shared[start::sharers] for start in range(sharers)]
    return [Batch(group, sum(rows[team_id] for team_id in group)) for group in groups]


def forecast(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> str:
    """The plan of a dry run as text: what a run would do, and what it would cost. Writes nothing.

    The time is estimated by telling apart the ids in the first rows of the largest team, now, on this cluster.
    """
    rows = chosen(rows_by_team(ledger.connection, warehouse), settings)
    verified = (
        {team.team_id for team in ledger.teams() if team.status == TeamStatus.VERIFIED} if ledger.exists() else {}
    )
    left = {team_id: count for team_id, count in rows.items() if team_id not in verified}
    left_out = gone(ledger.connection, left)
    for team_id in left_out:
        del left[team_id]
    if not left:
        return (
            f"Dry run: of {counted(len(rows), 'team')} none is left to copy. Nothing was written. Before the switch, a "
            "run compares what changed since they were verified; after a rollback, everything."
        )
    budget = Budget(settings.max_memory_usage)
    largest = next(iter(left))
    sample = cut(warehouse, Slice(largest, b"", None), left[largest], budget.range_rows)[0]
    started = time.monotonic()
    warehouse.rows("simple_ids_seen", sample.parameters)
    told = time.monotonic() - started
    seconds_a_row = told / min(max(left[largest], 1), budget.range_rows) * COPY_TO_TELLING
    copying = sum(left.values()) * seconds_a_row
    verifying = copying * (1 - COPY_SHARE) / COPY_SHARE
    slices = sum(math.ceil(max(count, 1) * seconds_a_row / SLICE_SECONDS) for count in left.values())
    old_rows, old_bytes = warehouse.rows("size")[0]
    size = sum(left.values()) * (old_bytes / max(old_rows, 1))
    labels = "\n".join(
        f"  team {team_id}: {counted(count, 'row')}" for team_id, count in itertools.islice(left.items(), LISTED)
    )
    return (
        f"Dry run: {counted(len(rows), 'team')}, {len(rows) - len(left):,} of them verified already; "
        f"{counted(sum(left.values()), 'row')} to copy in about {counted(slices, 'slice')}.\n"
        f"Copying takes about {copying:,.0f} s of one task, and verifying about {verifying:,.0f} s, besides the "
        f"seconds that Airflow takes to start the tasks of each team; at most {budget.memory / 1e6:,.0f} MB of memory "
        f"per statement and about {size / 1e6:,.0f} MB of disk. Nothing was written. The largest teams:\n{labels}"
        + (f"\n{_not_copied(left_out)}" if left_out else "")
    )
