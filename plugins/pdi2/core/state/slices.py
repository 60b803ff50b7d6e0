"""What a statement is about: teams as wholes, or a slice of one.

A slice is a range of the sort key, so that it reads its own granules only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clickhouse_connect.driver.exceptions import DatabaseError
from more_itertools import constrained_batches

from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import is_time_limit
from pdi2.core.state.words import quoted

UNKNOWN_FUNCTION = 46
SAMPLES_A_SLICE = 32
GRANULE_ROWS = 8_192
FEWEST_ROWS = 1_000
"""A slice that meets the memory limit is halved, but not further than this."""
SMALL_ROWS = 10_000
"""Teams of no more share statements: theirs cost more by themselves than their rows do."""
TEAMS_AT_ONCE = 500
BYTES_A_STATEMENT = 25_000_000
BYTES_A_ROW = 1_000
"""Planned for a statement that aggregates all it reads; `old_differs`, of both tables, took up to 550 a row (26.9)."""


@dataclass(frozen=True)
class Teams:
    """Teams as wholes, of about `rows` rows in all: one, or small ones that share statements."""

    ids: tuple[int, ...]
    rows: int

    @property
    def parameters(self) -> dict[str, Any]:
        return {"team_ids": list(self.ids), "from_the_start": True, "lower": "", "upper": "", "to_the_end": True}

    @property
    def alone(self) -> "list[Teams]":
        return [Teams((team_id,), self.rows) for team_id in self.ids]

    def __str__(self) -> str:
        return named(self.ids)


def named(team_ids: Sequence[int]) -> str:
    return f"team {team_ids[0]}" if len(team_ids) == 1 else f"{len(team_ids):,} teams from {team_ids[0]}"


def aggregated_at_once(memory: int) -> int:
    """So many rows a statement may aggregate."""
    return (memory - BYTES_A_STATEMENT) // BYTES_A_ROW


def together(rows: Mapping[int, int], memory: int) -> list[Teams]:
    """Small teams that share statements of so much memory. One may be alone; a team that is not small is left out."""
    small = [team_id for team_id, count in rows.items() if count <= SMALL_ROWS]
    groups = constrained_batches(
        small, aggregated_at_once(memory), TEAMS_AT_ONCE, get_len=rows.__getitem__, strict=False
    )
    return [Teams(group, sum(rows[team_id] for team_id in group)) for group in groups]


@dataclass(frozen=True)
class Slice:
    """distinct_ids of a team from `lower` (included) up to `upper` (not included; None: the end)."""

    team_id: int
    lower: bytes
    upper: bytes | None

    @property
    def ids(self) -> tuple[int, ...]:
        return (self.team_id,)

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "team_ids": [self.team_id],
            "from_the_start": self.lower == b"",
            "lower": self.lower.hex(),
            "upper": (self.upper or b"").hex(),
            "to_the_end": self.upper is None,
        }

    def __str__(self) -> str:
        lower = quoted(self.lower) if self.lower else "the start"
        upper = quoted(self.upper) if self.upper is not None else "the end"
        return f"slice of team {self.team_id} from {lower} to {upper}"


def join(slices: list[Slice]) -> Slice:
    """Neighbours as one."""
    return Slice(slices[0].team_id, slices[0].lower, slices[-1].upper)


def cut(warehouse: Warehouse, whole: Slice, rows_in_whole: int, rows: int) -> list[Slice]:
    """The range in slices of about `rows` rows, in key order, with no gap and no overlap.

    The bounds come from the primary index. They come from a sample of the rows where the server has no mergeTreeIndex
    or leaves the ids out of its index (it may, where the teams alone tell granules apart), and where the table is in so
    many parts that a granule of each, which a bound may cut anywhere, is more than half a slice.
    """
    if rows_in_whole <= rows:
        return [whole]
    index = _index(warehouse, whole)
    parts = {part for _, _, of_granules in index for part in of_granules}
    bounds = _bounds(index, rows)
    if (len(bounds) + 1) * rows < rows_in_whole / 2 or len(parts) * GRANULE_ROWS > rows / 2:
        bounds = _sampled(warehouse, whole, rows) or bounds
    return [
        Slice(whole.team_id, lower, upper)
        for lower, upper in zip([whole.lower, *bounds], [*bounds, whole.upper], strict=True)
    ]


def _index(warehouse: Warehouse, whole: Slice) -> list[tuple[Any, ...]]:
    try:
        return warehouse.rows("index_bounds", whole.parameters)
    except DatabaseError as error:
        if error.code == UNKNOWN_FUNCTION:
            return []
        raise


def _sampled(warehouse: Warehouse, whole: Slice, rows: int) -> list[bytes]:
    """Reads all ids of the range; none where that takes longer than the ClickHouse user may: then the index must do."""
    step = max(1, rows // SAMPLES_A_SLICE)
    try:
        return _bounds(warehouse.rows("sampled_bounds", {**whole.parameters, "step": step}), rows)
    except DatabaseError as error:
        if is_time_limit(error):
            return []
        raise


def _bounds(found: list[tuple[Any, ...]], rows: int) -> list[bytes]:
    """Of ids in key order, each with the rows it stands for, those that end a slice of `rows` rows."""
    bounds: list[bytes] = []
    since = 0
    for distinct_id, stands_for, *_ in found:
        if since >= rows:
            bounds.append(distinct_id)
            since = 0
        since += stands_for
    return bounds
