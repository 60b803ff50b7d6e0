"""What a statement works on: whole teams, or a slice of one team.

A slice is a range of the sort key, so that reading it reads only its own granules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clickhouse_connect.driver.exceptions import DatabaseError
from more_itertools import constrained_batches

from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import is_time_limit
from pdi2.core.state.words import quoted

OLD_TABLE, NEW_TABLE = "person_distinct_id", "person_distinct_id2"
UNKNOWN_FUNCTION = 46
SAMPLES_A_SLICE = 32
MOST_SAMPLES = 500_000
"""Of a range, in 200 MB: 640,000 fitted, and 960,000 did not."""
GRANULE_ROWS = 8_192
FEWEST_ROWS = 1_000
"""A slice that meets the memory limit is halved, but not below this."""
SMALL_ROWS = 10_000
"""Teams with no more rows than this share statements: statements of their own would cost more than their rows do."""
TEAMS_AT_ONCE = 500
LONGEST_BOUND = 2_000
"""In bytes. The ledger's key holds where a slice begins, and a key of Postgres takes 2,704 bytes at most."""
BYTES_A_STATEMENT = 25_000_000
BYTES_A_ROW = 1_000
"""Memory planned for a statement that aggregates all rows it reads. `old_differs`, which reads both tables, took up to
550 bytes per row (26.9)."""


@dataclass(frozen=True)
class Teams:
    """Whole teams, with about `rows` rows in total: a single team, or small teams that share statements."""

    team_ids: tuple[int, ...]
    rows: int

    @property
    def parameters(self) -> dict[str, Any]:
        return {"team_ids": list(self.team_ids), "from_the_start": True, "lower": "", "upper": "", "to_the_end": True}

    def __str__(self) -> str:
        return named(self.team_ids)


def named(team_ids: Sequence[int]) -> str:
    return f"team {team_ids[0]}" if len(team_ids) == 1 else f"{len(team_ids):,} teams from team {team_ids[0]} on"


def aggregated_at_once(memory: int) -> int:
    """How many rows a statement with this much memory may aggregate."""
    return (memory - BYTES_A_STATEMENT) // BYTES_A_ROW


def together(rows: Mapping[int, int], memory: int) -> list[Teams]:
    """Groups small teams to share statements with this much memory; a group may be a single team.

    Teams that are not small are left out.
    """
    small = [team_id for team_id, count in rows.items() if count <= SMALL_ROWS]
    groups = constrained_batches(
        small, aggregated_at_once(memory), TEAMS_AT_ONCE, get_len=rows.__getitem__, strict=False
    )
    return [Teams(group, sum(rows[team_id] for team_id in group)) for group in groups]


def grouped(rows: Mapping[int, int], memory: int) -> list[Teams]:
    """All teams: small ones in groups that share statements, each other team alone."""
    shared = together(rows, memory)
    sharing = {team_id for teams in shared for team_id in teams.team_ids}
    return shared + [Teams((team_id,), count) for team_id, count in rows.items() if team_id not in sharing]


@dataclass(frozen=True)
class Slice:
    """A team's distinct_ids from `lower` (included) up to `upper` (not included; None: the end)."""

    team_id: int
    lower: bytes
    upper: bytes | None

    @property
    def team_ids(self) -> tuple[int, ...]:
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
    """Neighbouring slices as one."""
    return Slice(slices[0].team_id, slices[0].lower, slices[-1].upper)


def cut(warehouse: Warehouse, whole: Slice, rows_in_whole: int, rows: int, table: str = OLD_TABLE) -> list[Slice]:
    """Cuts the range into slices of about `rows` rows of the table, in key order, with no gap and no overlap.

    The bounds come from the primary index, or from a sample of the rows if the index is too coarse or missing: the
    server has no mergeTreeIndex, or leaves the ids out of its index (it may if the teams alone tell granules apart), or
    there are many parts. A bound may cut one granule of each part anywhere, so together they may exceed half a slice.
    """
    if rows_in_whole <= rows:
        return [whole]
    where = {**whole.parameters, "table": table}
    index = _index(warehouse, where)
    parts = {part for _, _, of_granules in index for part in of_granules}
    bounds = _bounds(index, rows)
    if (len(bounds) + 1) * rows < rows_in_whole / 2 or len(parts) * GRANULE_ROWS > rows / 2:
        step = max(1, rows // SAMPLES_A_SLICE, rows_in_whole // MOST_SAMPLES)
        bounds = _sampled(warehouse, where, step, rows) or bounds
    return [
        Slice(whole.team_id, lower, upper)
        for lower, upper in zip([whole.lower, *bounds], [*bounds, whole.upper], strict=True)
    ]


def _index(warehouse: Warehouse, where: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    try:
        return warehouse.rows("index_bounds", where)
    except DatabaseError as error:
        if error.code == UNKNOWN_FUNCTION:
            return []
        raise


def _sampled(warehouse: Warehouse, where: Mapping[str, Any], step: int, rows: int) -> list[bytes]:
    """Bounds from reading all ids of the range; none if that exceeds the ClickHouse user's time limit.

    Then the bounds from the index must do.
    """
    try:
        return _bounds(warehouse.rows("sampled_bounds", {**where, "step": step}), rows)
    except DatabaseError as error:
        if is_time_limit(error):
            return []
        raise


def _bounds(found: list[tuple[Any, ...]], rows: int) -> list[bytes]:
    """The ids that end a slice of about `rows` rows. `found` has ids in key order, each with the rows it stands for."""
    bounds: list[bytes] = []
    since = 0
    for distinct_id, stands_for, *_ in found:
        if since >= rows and len(distinct_id) <= LONGEST_BOUND:
            bounds.append(distinct_id)
            since = 0
        since += stands_for
    return bounds
