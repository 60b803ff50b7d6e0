"""Cuts a team's distinct_ids into slices: ranges of the sort key, so that a slice reads its own granules only."""

from dataclasses import dataclass
from typing import Any

from clickhouse_connect.driver.exceptions import DatabaseError

from pdi2.core.clickhouse import Warehouse

UNKNOWN_FUNCTION = 46
SAMPLES_A_SLICE = 32
GRANULE_ROWS = 8_192


@dataclass(frozen=True)
class Slice:
    """distinct_ids of a team from `lower` (included) up to `upper` (not included; None: the end)."""

    team_id: int
    lower: bytes
    upper: bytes | None

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "team_id": self.team_id,
            "from_the_start": self.lower == b"",
            "lower": self.lower.hex(),
            "upper": (self.upper or b"").hex(),
            "to_the_end": self.upper is None,
        }

    def __str__(self) -> str:
        upper = repr(self.upper) if self.upper is not None else "the end"
        return f"slice of team {self.team_id} from {self.lower!r} to {upper}"


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
        step = max(1, rows // SAMPLES_A_SLICE)
        bounds = _bounds(warehouse.rows("sampled_bounds", {**whole.parameters, "step": step}), rows)
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
