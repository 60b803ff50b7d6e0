"""Copies a team, a slice of its distinct_ids at a time. A finished slice is a checkpoint in the ledger.

Almost every id has a single row and goes straight through; the few others are told apart first, a range of the key
at a time, and go by the rule of winners.sql. Every statement may be run again: a copied row has a negative version
that grows with the time of its event, so it never hides what the application wrote, and of two copies of an id the
later event wins.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clickhouse_connect.driver.exceptions import DatabaseError

from pdi2.core.clickhouse import Warehouse
from pdi2.core.failures import MEMORY_LIMIT_EXCEEDED, BusyError, MigrationError, Reaction, describe, reaction
from pdi2.core.ledger import Ledger
from pdi2.core.pressure import wait_while_busy
from pdi2.core.slices import FEWEST_ROWS, Slice, Teams, cut, join, together

log = logging.getLogger(__name__)

LEAST_MEMORY = 32_000_000
RANGES_A_SLICE = 5
MOST_COMPLEX = 0.5
"""Above this share of ids with several rows every id of a range goes by the rule."""
KEPT = "What is finished is kept; reads stay on the old table."


class CopyError(MigrationError):
    """A slice cannot be copied, or what was copied does not count up."""


@dataclass(frozen=True)
class Budget:
    """What a statement may use, in bytes, and what follows from it. Bytes a row were measured on ClickHouse 26.9."""

    memory: int

    @property
    def range_rows(self) -> int:
        """Telling complex ids apart takes up to 45 bytes a row."""
        return self.memory // 60

    @property
    def rule_rows(self) -> int:
        """The rule and the insert of what it yields take about 185 bytes a row."""
        return self.memory // 320

    @property
    def insert_settings(self) -> dict[str, Any]:
        """A block read is a block written: rows of one part come in key order, and need no sorting again.

        Each thread writes blocks, in about ten times their size. Blocks under 10 MB make compact parts, which
        take half the memory of wide ones to write.
        """
        block = min(9_000_000, self.memory // 20)
        return {
            "optimize_on_insert": 0,
            "max_block_size": 262_144,
            "preferred_block_size_bytes": block,
            "min_insert_block_size_bytes": block // 2,
            "min_insert_block_size_rows": 0,
            "max_bytes_before_external_group_by": self.memory * 2 // 3,
            "min_compress_block_size": 65_536,
            "max_compress_block_size": 65_536,
            "max_query_size": 64 * 1024 * 1024,
        }


@dataclass(frozen=True)
class Told:
    """What a range holds: how many simple ids, the hashes of the complex ones, and at most how many rows they have."""

    simple: int
    complex_ids: array[int]
    complex_rows: int

    @property
    def mostly_complex(self) -> bool:
        return len(self.complex_ids) > MOST_COMPLEX * (self.simple + len(self.complex_ids))


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
        _copy_range(ledger, warehouse, Slice(team_id, lower or b"", None), team.rows_source, min(rows, most))
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
                ledger.set_failed(teams.ids, describe(error))
                raise _given_up(ledger, warehouse, teams, error) from error
            log.warning("%s could not be copied together, so each is now alone: %s", teams, describe(error))
        ledger.start_copy(set(teams.ids) - ended, attempts=-1)  # alone each begins anew, and it is the same attempt
    return [team_id for team_id in team_ids if team_id not in ended]


def _copy_wholes(ledger: Ledger, warehouse: Warehouse, teams: Teams) -> set[int]:
    """Returns the teams of which all ids that are live are in the new table."""
    settings = Budget(warehouse.max_memory_usage).insert_settings
    with warehouse.measured() as cost:
        [told] = tell_apart(warehouse, [teams])
        ids = _ruled(teams, told)
        expected = _by_rule(warehouse, ids) if told.complex_ids else Counter()
        if not told.mostly_complex:
            expected.update(dict(warehouse.rows("count_simple", ids)))
            warehouse.execute("copy_simple", ids, settings)
        copied = Counter(dict(warehouse.rows("copied", teams.parameters)))
        differ = tuple(team_id for team_id in teams.ids if copied[team_id] != expected[team_id])
        short = _copy_late(warehouse, Teams(differ, teams.rows), settings) if differ else 0
    right = {team_id: expected[team_id] for team_id in teams.ids if not short or team_id not in differ}
    ledger.finish_together(right, cost)
    log.info("Copied %s of %s: %s rows in %.2f s", len(right), teams, f"{sum(right.values()):,}", cost.seconds)
    return set(right)


def _copy_range(ledger: Ledger, warehouse: Warehouse, whole: Slice, rows_in_whole: int, rows: int) -> None:
    try:
        ranges = cut(warehouse, whole, rows_in_whole, rows)
    except DatabaseError as error:
        raise _given_up(ledger, warehouse, whole, error) from error
    budget = Budget(warehouse.max_memory_usage)
    while ranges:
        wait_while_busy(ledger, warehouse, [whole.team_id])
        try:
            with warehouse.measured() as cost:
                told = tell_apart(warehouse, ranges[:RANGES_A_SLICE])
                crowded = told[0].complex_rows > budget.rule_rows and rows > budget.rule_rows // 2
                taken, copied = (0, 0) if crowded else (len(told), copy_slice(warehouse, ranges[: len(told)], told))
        except DatabaseError as error:
            if reaction(error) is not Reaction.SPLIT or rows <= FEWEST_ROWS:
                raise _given_up(ledger, warehouse, ranges[0], error) from error
            half = max(rows // 2, FEWEST_ROWS)
            log.warning(
                "The %s met the query's memory limit; now %s rows at once. %s", ranges[0], half, describe(error)
            )
            ledger.remember_slice_rows(whole.team_id, half)
            return _copy_range(ledger, warehouse, join(ranges), rows * len(ranges), half)
        if crowded:
            fewer = max(rows * budget.rule_rows // told[0].complex_rows, budget.rule_rows // 2)
            return _copy_range(ledger, warehouse, join(ranges), rows * len(ranges), fewer)
        finished = join(ranges[:taken])
        ledger.finish_slice(finished, copied, cost)
        log.info("Copied the %s: %s rows in %.2f s", finished, f"{copied:,}", cost.seconds)
        ranges = ranges[taken:]
    return None


def _given_up(ledger: Ledger, warehouse: Warehouse, piece: Slice | Teams, error: DatabaseError) -> MigrationError:
    """What to raise: BusyError where a later try can help. After a memory limit that try gets half the memory."""
    if reaction(error) is Reaction.FAIL:
        return CopyError(
            f"The {piece} cannot be copied: {describe(error)} {KEPT} Remove the cause and trigger a new run."
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


def tell_apart(warehouse: Warehouse, ranges: Sequence[Slice | Teams]) -> list[Told]:
    """What the first ranges hold, as many as can be treated like the first; it only reads."""
    most = Budget(warehouse.max_memory_usage).rule_rows
    told: list[Told] = []
    for piece in ranges:
        simple, complex_ids, complex_rows = warehouse.rows("detect_complex", piece.parameters)[0]
        found = Told(simple, array("I", complex_ids), complex_rows)
        if told and (found.complex_rows > most or found.mostly_complex != told[0].mostly_complex):
            break
        told.append(found)
        if found.complex_rows > most:
            break
    return told


def copy_slice(warehouse: Warehouse, ranges: list[Slice], told: list[Told]) -> int:
    """Copies the ranges; returns the ids copied. Raises CopyError if an id that is live is not in the new table.

    Everything that reads a range again comes before the great insert, whose parts are then merged.
    """
    expected = 0
    for piece, found in zip(ranges, told, strict=True):
        expected += _by_rule(warehouse, _ruled(piece, found)).total() if found.complex_ids else 0
    for piece, found in zip(ranges, told, strict=True):
        if not found.mostly_complex:
            settings = Budget(warehouse.max_memory_usage).insert_settings
            warehouse.execute("copy_simple", _only(piece, found.complex_ids), settings)
            expected += found.simple
    _count(warehouse, join(ranges), expected)
    return expected


def _by_rule(warehouse: Warehouse, ids: dict[str, Any]) -> Counter[int]:
    """Returns how many ids of each team are live, which the insert does not tell."""
    settings = Budget(warehouse.max_memory_usage).insert_settings
    warehouse.execute("copy_by_rule", ids, settings)
    return Counter(dict(warehouse.rows("count_live", ids, settings)))


def _count(warehouse: Warehouse, piece: Slice, expected: int) -> None:
    """The counts differ where a slice is copied again or live updates replaced copies: then id by id."""
    if sum(ids for _, ids in warehouse.rows("copied", piece.parameters)) == expected:
        return
    budget = Budget(warehouse.max_memory_usage)
    missing = sum(
        _copy_late(warehouse, part, budget.insert_settings)
        for part in cut(warehouse, piece, expected, budget.rule_rows)
    )
    if missing:
        raise CopyError(
            f"After the copy of the {piece}, {missing:,} ids that are live in person_distinct_id are not in "
            "person_distinct_id2. Reads stay on the old table and nothing is lost. Look for errors in ClickHouse's "
            "log, then trigger the run again: this slice is copied anew."
        )


def _copy_late(warehouse: Warehouse, part: Slice | Teams, settings: dict[str, Any]) -> int:
    """Copies ids that have reached the old table since and not yet the new one; returns how many are missing still."""
    [[late]] = warehouse.rows("not_copied", _all(part), settings)
    if not late:
        return 0
    only = _only(part, array("I", late))
    warehouse.execute("copy_by_rule", only, settings)
    [[missing]] = warehouse.rows("not_copied", only, settings)
    return len(missing)


def _ruled(piece: Slice | Teams, found: Told) -> dict[str, Any]:
    return _all(piece) if found.mostly_complex else _only(piece, found.complex_ids)


def _only(piece: Slice | Teams, complex_ids: array[int]) -> dict[str, Any]:
    """The hashes go as text within the statement: no parameter of a URL holds a hundred thousand numbers."""
    return {
        **piece.parameters,
        "every_id": False,
        "complex_count": len(complex_ids),
        "$complex$": complex_ids.tobytes().hex().encode(),
    }


def _all(piece: Slice | Teams) -> dict[str, Any]:
    return {**piece.parameters, "every_id": True, "complex_count": 0, "$complex$": b""}
