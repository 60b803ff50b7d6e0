"""Copies a team, a slice of its distinct_ids at a time. A finished slice is a checkpoint in the ledger.

A slice is as many ranges of the key as are copied in SLICE_SECONDS. Each is as large as the memory of a statement
allows, and a statement that meets the query's limit halves it.
"""

import logging
import time
from dataclasses import dataclass, field

from clickhouse_connect.driver.exceptions import DatabaseError

from pdi2.core.cluster.pressure import wait_while_busy
from pdi2.core.copy import pieces
from pdi2.core.copy.pieces import Budget
from pdi2.core.copy.staging import Tables, hand_over, tables_for, waiting
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import (
    MEMORY_LIMIT_EXCEEDED,
    WAITS,
    BusyError,
    MigrationError,
    Reaction,
    WaitError,
    describe,
    is_time_limit,
    next_step,
    reaction,
    waits,
)
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.slices import FEWEST_ROWS, Slice, Teams, cut, join, together
from pdi2.core.state.switches import Switches
from pdi2.core.state.words import counted

log = logging.getLogger(__name__)

LEAST_MEMORY = 32_000_000
SLICE_SECONDS = 30.0
"""A slice ends with the ranges at work then: so much is lost at most where a copy is killed."""
RANGES_AT_ONCE = 5
KEPT = "What is finished is kept; reads stay on the old table."


class CopyError(MigrationError):
    """A slice cannot be copied, or what was copied does not count up."""


@dataclass
class Rest:
    """What is left of a team: its ranges in the order of the key, of at most about `rows` rows each."""

    ranges: list[Slice]
    rows_in_all: int
    rows: int

    def cut(self, warehouse: Warehouse, rows: int) -> None:
        self.ranges = cut(warehouse, join(self.ranges), self.rows_in_all, rows)
        self.rows = rows

    def take(self, count: int) -> list[Slice]:
        taken, self.ranges = self.ranges[:count], self.ranges[count:]
        self.rows_in_all = max(self.rows_in_all - count * self.rows, 0)
        return taken

    def take_back(self, ranges: list[Slice]) -> None:
        self.ranges = ranges + self.ranges
        self.rows_in_all += len(ranges) * self.rows


@dataclass
class Filled:
    """What is in a slice's target: the ranges, the ids that should be there, and the ranges that did not count up."""

    ranges: list[Slice] = field(default_factory=list)
    ids: int = 0
    doubtful: list[Slice] = field(default_factory=list)


def copy_team(ledger: Ledger, warehouse: Warehouse, team_id: int) -> None:
    """Copies what is not copied yet; finished slices stay finished.

    Raises BusyError where a later try can help, CopyError or the database's error where it cannot.
    """
    team = ledger.team(team_id)
    lower, done = ledger.checkpoint(team_id)
    if not done:
        ledger.start_copy([team_id])
        warehouse.max_memory_usage = min(warehouse.max_memory_usage, team.memory_budget or warehouse.max_memory_usage)
        most = Budget(warehouse.max_memory_usage).range_rows
        rows = max(team.slice_rows or max(ledger.smallest_slice_rows() or most, most // 8), FEWEST_ROWS)
        rest = Rest([Slice(team_id, lower or b"", None)], team.rows_source, min(rows, most))
        try:
            rest.cut(warehouse, rest.rows)
            while rest.ranges:
                _copy_slice(ledger, warehouse, rest)
        except DatabaseError as error:
            raise _given_up(ledger, warehouse, rest.ranges[0], error) from error
    ledger.set_copied([team_id])


def copy_together(ledger: Ledger, warehouse: Warehouse, team_ids: list[int]) -> list[int]:
    """Copies small teams by shared statements; returns those that are left to be copied alone.

    Where those statements fail, each of their teams is: one fails alone. Raises BusyError where a later try can help.
    """
    ended = ledger.ended(team_ids)
    ledger.set_copied(ended)
    fresh = [team for team in ledger.teams_of(team_ids) if not team.slices_done]
    budgets = [team.memory_budget for team in fresh if team.memory_budget]
    warehouse.max_memory_usage = min([warehouse.max_memory_usage, *budgets])
    for teams in together({team.team_id: team.rows_source for team in fresh}, warehouse.max_memory_usage):
        wait_while_busy(ledger, warehouse, teams.ids)
        ledger.start_copy(teams.ids)
        try:
            ended |= _copy_wholes(ledger, warehouse, teams)
        except DatabaseError as error:
            if reaction(error) is Reaction.RETRY:
                if not waits(error):
                    ledger.set_failed(teams.ids, describe(error))
                raise _given_up(ledger, warehouse, teams, error) from error
            log.warning("%s could not be copied together, so each is now done by itself: %s", teams, describe(error))
        ledger.start_copy(set(teams.ids) - ended, attempts=-1)  # alone each begins anew, and it is the same attempt
    return [team_id for team_id in team_ids if team_id not in ended]


def _copy_wholes(ledger: Ledger, warehouse: Warehouse, teams: Teams) -> set[int]:
    """Returns the teams of which all ids that are live are in the new table."""
    missing = 0
    with warehouse.measured() as cost:
        expected = pieces.copy_wholes(warehouse, teams)
        there = pieces.copied(warehouse, teams)
        differ = tuple(team_id for team_id in teams.ids if there[team_id] != expected[team_id])
        if differ:
            with tables_for(warehouse, teams, rows=0) as tables:
                missing = pieces.mend(warehouse, tables, Teams(differ, teams.rows))
    right = {team_id: expected[team_id] for team_id in teams.ids if not missing or team_id not in differ}
    ledger.finish_together(right, cost)
    Switches(ledger.connection).follow_ledger()
    log.info("Copied %s of %s: %s rows in %.2f s", len(right), teams, f"{sum(right.values()):,}", cost.seconds)
    return set(right)


def _copy_slice(ledger: Ledger, warehouse: Warehouse, rest: Rest) -> None:
    """Takes from the rest what one slice holds; where it meets the query's memory limit, cuts the rest smaller."""
    [team_id] = rest.ranges[0].ids
    room = wait_while_busy(ledger, warehouse, [team_id])
    filled, failure = Filled(), None
    with warehouse.measured() as cost, tables_for(warehouse, rest.ranges[0], rest.rows_in_all) as tables:
        try:
            _fill(warehouse, tables, rest, room, filled)
        except DatabaseError as error:
            failure = error
        try:
            _hand_over_slice(warehouse, tables, filled)
        except DatabaseError as error:
            failure = failure or error
            rest.take_back(filled.ranges)
            filled = Filled()
    if filled.ranges:
        finished = join(filled.ranges)
        ledger.finish_slice(finished, filled.ids, cost)
        Switches(ledger.connection).follow_ledger()
        log.info("Copied the %s: %s in %.2f s", finished, counted(filled.ids, "row"), cost.seconds)
    if failure:
        if reaction(failure) is not Reaction.SPLIT or rest.rows <= FEWEST_ROWS:
            raise failure
        half = max(rest.rows // 2, FEWEST_ROWS)
        log.warning("The %s met a limit of the query; now %s rows at once. %s", rest.ranges[0], half, describe(failure))
        ledger.remember_slice_rows(team_id, half)
        rest.cut(warehouse, half)


def _fill(warehouse: Warehouse, tables: Tables, rest: Rest, room: int, filled: Filled) -> None:
    """Copies range after range until the slice is long enough or has as many parts as there is room for."""
    until = time.monotonic() + SLICE_SECONDS
    rows = 0
    while rest.ranges:
        taken = pieces.tell_apart(warehouse, tables, rest.ranges[:RANGES_AT_ONCE])
        piece = join(rest.ranges[:taken])
        expected = pieces.copy(warehouse, tables, piece)
        if tables.staged:
            before, (rows, parts) = rows, waiting(warehouse, tables)
            there = rows - before
        else:
            there, parts = pieces.copied(warehouse, piece).total(), room
        filled.ids += expected
        filled.ranges += (ranges := rest.take(taken))
        filled.doubtful += ranges if there != expected else []
        if parts >= room or time.monotonic() > until:
            break


def _hand_over_slice(warehouse: Warehouse, tables: Tables, filled: Filled) -> None:
    """Hands the slice over to the new table, with what a failed statement left behind: copies like any other.

    Counts differ where a slice is copied again, a live update replaced a copy, or ids came meanwhile: then id by id.
    Raises CopyError if an id that is live is not in the new table.
    """
    doubtful = filled.doubtful
    if tables.staged:
        before = pieces.rows_there(warehouse, filled.ranges)
        failure = hand_over(warehouse, tables)
        if pieces.rows_there(warehouse, filled.ranges) - before < filled.ids:
            if failure:
                raise WaitError(
                    f"What was copied of team {filled.ranges[0].team_id} is not in person_distinct_id2 yet, and waits "
                    f"for its replicas: {describe(failure)} {KEPT} {WAITS}"
                )
            doubtful = filled.ranges
    for piece in doubtful:
        if missing := pieces.mend(warehouse, tables, piece):
            raise CopyError(
                f"After the copy of the {piece}, {missing:,} ids that are live in person_distinct_id are not in "
                "person_distinct_id2. Reads stay on the old table and nothing is lost. Look for errors in ClickHouse's "
                "log, then trigger the run again: this slice is copied anew."
            )


def _given_up(ledger: Ledger, warehouse: Warehouse, piece: Slice | Teams, error: DatabaseError) -> MigrationError:
    """What to raise: BusyError where a later try can help. After a memory limit that try gets half the memory."""
    if reaction(error) is Reaction.FAIL:
        return CopyError(
            f"The {piece} cannot be copied: {describe(error)} {KEPT} Remove the cause and trigger a new run."
        )
    if waits(error):
        return WaitError(f"The copy of the {piece} waits: {describe(error)} {KEPT} {next_step(error)}")
    if is_time_limit(error):
        return BusyError(
            f"The {piece} takes too long even at {FEWEST_ROWS:,} rows at once: {describe(error)} {KEPT} "
            f"{next_step(error)}"
        )
    if reaction(error) is Reaction.SPLIT:
        return CopyError(
            f"The {piece} does not fit into max_memory_usage even at {FEWEST_ROWS:,} rows at once: {describe(error)} "
            f"{KEPT} Trigger the run again with a greater max_memory_usage than {warehouse.max_memory_usage:,}."
        )
    change = "The next try goes on from the last finished slice"
    if error.code == MEMORY_LIMIT_EXCEEDED:
        smaller = max(warehouse.max_memory_usage // 2, LEAST_MEMORY)
        ledger.remember_memory_budget(piece.ids, smaller)
        change += f", with {smaller / 1e6:,.0f} MB instead of {warehouse.max_memory_usage / 1e6:,.0f} MB"
    return BusyError(f"The copy of the {piece} was given up: {describe(error)} {KEPT} {change}.")
