"""Copies a team, a slice of its distinct_ids at a time. A finished slice is a checkpoint in the ledger.

1. `copy_team` cuts what is left of the team into ranges of the key, each as large as a statement's memory limit allows.
2. `_copy_slice` waits until the server is free, and creates a staging table.
3. `_fill` copies range after range into it for SLICE_SECONDS, and counts each: that is a slice.
4. `_hand_over_slice` adds the slice to the new table in one step, and counts again.
5. The ledger gets the checkpoint. If a statement met the limit, what is left is cut into ranges of half the size. Then
   the next slice begins at 2.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

from clickhouse_connect.driver.exceptions import DatabaseError

from pdi2.core.cluster.pressure import wait_while_busy
from pdi2.core.cluster.replicas import explained
from pdi2.core.copy import pieces
from pdi2.core.copy.pieces import PARTS_A_RANGE, Budget
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
from pdi2.core.state.words import are, counted

log = logging.getLogger(__name__)

LEAST_MEMORY = 32_000_000
SLICE_SECONDS = 30.0
"""After this time the slice ends with the ranges that are being copied. A copy that is killed loses at most one
slice."""
RANGES_AT_ONCE = 5
KEPT = "What is finished is kept; reads stay on the old table."


class CopyError(MigrationError):
    """A slice cannot be copied, or what was copied does not add up."""


@dataclass(frozen=True)
class Filled:
    """Ranges that were copied to a slice's target, and how many ids they have.

    In a staging table, every row is an id. The new table may also have earlier copies, so there the old table says.
    """

    ranges: list[Slice]
    ids: int
    adds_up: bool


def copy_team(ledger: Ledger, warehouse: Warehouse, team_id: int) -> None:
    """Copies what is not copied yet; finished slices stay finished.

    Raises BusyError if a later try can help, CopyError or the database's error if it cannot.
    """
    team = ledger.team(team_id)
    lower = ledger.checkpoint(team_id)
    if lower is not None:
        ledger.start_copy([team_id])
        warehouse.max_memory_usage = min(warehouse.max_memory_usage, team.memory_budget or warehouse.max_memory_usage)
        most = Budget(warehouse.max_memory_usage).range_rows
        wanted = team.range_rows or max(ledger.smallest_range_rows() or most, most // 8)
        rows = min(most, max(wanted, FEWEST_ROWS))
        left = [Slice(team_id, lower, None)]
        try:
            left = cut(warehouse, left[0], team.rows_source, rows)
            while left:
                rows = _copy_slice(ledger, warehouse, left, rows, team.rows_source)
        except DatabaseError as error:
            raise _given_up(ledger, warehouse, left[0], error) from error
    ledger.set_copied([team_id])


def copy_together(ledger: Ledger, warehouse: Warehouse, team_ids: list[int]) -> list[int]:
    """Copies small teams with shared statements; returns the teams that still have to be copied one by one.

    If a shared statement fails, its teams are copied one by one, so that a bad team fails alone. Raises BusyError if a
    later try can help.
    """
    ended = ledger.ended(team_ids)
    ledger.set_copied(ended)
    fresh = [team for team in ledger.teams(team_ids) if not team.slices_done]
    budgets = [team.memory_budget for team in fresh if team.memory_budget]
    warehouse.max_memory_usage = min([warehouse.max_memory_usage, *budgets])
    for teams in together({team.team_id: team.rows_source for team in fresh}, warehouse.max_memory_usage):
        wait_while_busy(ledger, warehouse, teams.team_ids)
        ledger.start_copy(teams.team_ids)
        try:
            ended |= _copy_wholes(ledger, warehouse, teams)
        except DatabaseError as error:
            if reaction(error) is Reaction.RETRY:
                if not waits(error):
                    ledger.set_failed(teams.team_ids, describe(error))
                raise _given_up(ledger, warehouse, teams, error) from error
            log.warning("%s could not be copied together, so each is now done by itself: %s", teams, describe(error))
        ledger.start_copy(set(teams.team_ids) - ended, attempts=-1)  # each starts again alone, in the same attempt
    return [team_id for team_id in team_ids if team_id not in ended]


def _copy_wholes(ledger: Ledger, warehouse: Warehouse, teams: Teams) -> set[int]:
    """Returns the teams whose live ids are all in the new table."""
    missing = 0
    with warehouse.measured() as cost:
        expected = pieces.copy_wholes(warehouse, teams)
        there = pieces.copied(warehouse, teams)
        differ = tuple(team_id for team_id in teams.team_ids if there[team_id] != expected[team_id])
        if differ:
            with tables_for(warehouse, teams, rows=0) as tables:
                missing = pieces.mend(warehouse, tables, Teams(differ, teams.rows))
    right = {team_id: expected[team_id] for team_id in teams.team_ids if not missing or team_id not in differ}
    ledger.finish_slices({Slice(team_id, b"", None): rows for team_id, rows in right.items()}, cost)
    ledger.set_copied(right)
    Switches(ledger.connection).follow_ledger()
    log.info("Copied %s of %s: %s rows in %.2f s", len(right), teams, f"{sum(right.values()):,}", cost.seconds)
    return set(right)


def _copy_slice(ledger: Ledger, warehouse: Warehouse, left: list[Slice], rows: int, rows_in_team: int) -> int:
    """Copies one slice from the start of `left`, and removes its ranges from `left`. Each range has about `rows` rows.

    If a statement meets the query's memory limit, the remaining ranges are cut smaller. Returns the rows that each
    remaining range has.
    """
    [team_id] = left[0].team_ids
    room = wait_while_busy(ledger, warehouse, [team_id])
    filled: list[Filled] = []
    failure = None
    with warehouse.measured() as cost, tables_for(warehouse, left[0], min(len(left) * rows, rows_in_team)) as tables:
        try:
            for one in _fill(warehouse, tables, left, room):
                filled.append(one)
        except DatabaseError as error:
            failure = error
        try:
            _hand_over_slice(warehouse, tables, filled)
        except DatabaseError as error:
            failure = failure or error
            filled = []
    if filled:
        ranges, ids = _ranges(filled), sum(one.ids for one in filled)
        ledger.finish_slices({join(ranges): ids}, cost)
        del left[: len(ranges)]
        Switches(ledger.connection).follow_ledger()
        log.info("Copied the %s: %s in %.2f s", join(ranges), counted(ids, "row"), cost.seconds)
    if not failure:
        return rows
    if reaction(failure) is not Reaction.SPLIT or rows <= FEWEST_ROWS:
        raise failure
    half = max(rows // 2, FEWEST_ROWS)
    log.warning("The %s met a limit of the query; now %s rows at a time. %s", left[0], half, describe(failure))
    ledger.remember_range_rows(team_id, half)
    left[:] = cut(warehouse, join(left), min(len(left) * rows, rows_in_team), half)
    return half


def _fill(warehouse: Warehouse, tables: Tables, ranges: list[Slice], room: int) -> Iterator[Filled]:
    """Copies range after range until the slice has taken long enough or has filled the room for parts."""
    until = time.monotonic() + SLICE_SECONDS
    done = rows = parts = 0
    while done < len(ranges):
        parts_a_range = parts / done if parts else PARTS_A_RANGE
        # ClickHouse never stops a running INSERT for its parts
        at_once = min(RANGES_AT_ONCE, max(1, int((room - parts) / parts_a_range)))
        taken = ranges[done : done + pieces.tell_apart(warehouse, tables, ranges[done : done + at_once])]
        piece = join(taken)
        expected = pieces.copy(warehouse, tables, piece)
        if tables.staged:
            before, (rows, parts) = rows, waiting(warehouse, tables)
            there = rows - before
        else:
            there, parts = pieces.copied(warehouse, piece).total(), room
        yield Filled(taken, there if tables.staged else expected, there == expected)
        done += len(taken)
        if parts >= room or time.monotonic() > until:
            return


def _hand_over_slice(warehouse: Warehouse, tables: Tables, filled: list[Filled]) -> None:
    """Hands the slice over to the new table. What a failed statement left in the staging table goes with it: those
    copies are valid.

    Counts differ if a slice is copied again, a live update replaced a copy, or new ids arrived. The slice is then
    checked id by id. Raises CopyError if a live id is not in the new table.
    """
    doubtful = [one for one in filled if not one.adds_up]
    if tables.staged:
        ranges = _ranges(filled)
        before = pieces.rows_there(warehouse, ranges)
        failure = hand_over(warehouse, tables)
        if pieces.rows_there(warehouse, ranges) - before < sum(one.ids for one in filled):
            if not failure or pieces.arrived(warehouse, tables, join(ranges)):
                doubtful = filled
            elif any(pieces.absent(warehouse, tables, piece) for piece in ranges):
                raise WaitError(
                    f"What was copied of team {ranges[0].team_id} is not in person_distinct_id2 yet, and waits for its "
                    f"replicas: {explained(warehouse, failure)} {KEPT} {WAITS}"
                )
    for piece in _ranges(doubtful):
        if missing := pieces.mend(warehouse, tables, piece):
            raise CopyError(
                f"After the copy of the {piece}, {counted(missing, 'live id')} of person_distinct_id {are(missing)} "
                "not in person_distinct_id2. Reads stay on the old table and nothing is lost. Look for errors in "
                "ClickHouse's log, then trigger the run again: this slice is copied anew."
            )


def _ranges(filled: list[Filled]) -> list[Slice]:
    return [piece for one in filled for piece in one.ranges]


def _given_up(ledger: Ledger, warehouse: Warehouse, piece: Slice | Teams, error: DatabaseError) -> MigrationError:
    """The error to raise: BusyError if a later try can help. After a memory limit of the server or the user, that try
    gets half the memory."""
    if reaction(error) is Reaction.FAIL:
        return CopyError(
            f"The {piece} cannot be copied: {describe(error)} {KEPT} Remove the cause and trigger a new run."
        )
    if waits(error):
        return WaitError(f"The copy of the {piece} waits: {explained(warehouse, error)} {KEPT} {next_step(error)}")
    if is_time_limit(error):
        return BusyError(
            f"The {piece} takes too long even at {FEWEST_ROWS:,} rows at a time: {describe(error)} {KEPT} "
            f"{next_step(error)}"
        )
    if reaction(error) is Reaction.SPLIT:
        return CopyError(
            f"The {piece} does not fit into max_memory_usage even at {FEWEST_ROWS:,} rows at a time: {describe(error)} "
            f"{KEPT} Trigger the run again with a greater max_memory_usage than {warehouse.max_memory_usage:,}."
        )
    change = "The next try goes on from the last finished slice"
    if error.code == MEMORY_LIMIT_EXCEEDED:
        smaller = max(warehouse.max_memory_usage // 2, LEAST_MEMORY)
        ledger.remember_memory_budget(piece.team_ids, smaller)
        change += f", with {smaller / 1e6:,.0f} MB instead of {warehouse.max_memory_usage / 1e6:,.0f} MB"
    return BusyError(f"The copy of the {piece} was given up: {describe(error)} {KEPT} {change}.")
