"""Copies a piece (a range of a team's key, or several small teams as wholes) with a few statements, and counts it.

Almost every id is simple: it has a single row, which is copied as it is. The complex ids are told apart first. Their
latest link and unlink decide nearly all of them, and the rule of winners.sql decides the few that are left. Every
statement may be run again, because a copied row has a negative version that grows with the time of its event. So it
never hides what the application wrote, and if an id is copied twice, the later event wins.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pdi2.core.copy.staging import Tables, create_anew, forget
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.state.slices import NEW_TABLE, OLD_TABLE, Slice, Teams, cut, join

Piece = Slice | Teams
ALL_ROWS = {"steps": 1, "step": 0}
MOST_ROWS_A_RANGE = 3_500_000
PARTS_A_RANGE = 50
"""At most: MOST_ROWS_A_RANGE rows of 100 bytes, in parts of at least half a block, which is 7 MB."""
DECIDING = {"max_block_size": 65_536}
"""ClickHouse 23.6 reserves memory for whole blocks: 50 MB at this size."""


@dataclass(frozen=True)
class Budget:
    """The memory that a statement may use, in bytes, and how many rows or ids fit into it.

    What each takes was measured on ClickHouse 26.9.
    """

    memory: int

    @property
    def range_rows(self) -> int:
        """Telling complex ids apart takes up to 45 bytes per row.

        With more memory a range would only make more parts, because a part has 14 MB at most.
        """
        return min(self.memory // 60, MOST_ROWS_A_RANGE)

    @property
    def deciding_rows(self) -> int:
        """Deciding by the latest events takes up to 210 bytes per row."""
        return self.memory // 350

    @property
    def rule_rows(self) -> int:
        """Applying the rule and inserting its result takes about 185 bytes per row."""
        return self.memory // 250

    @property
    def complex_ids(self) -> int:
        """The set of their hashes takes up to 16 bytes per id, in statements that also insert."""
        return self.memory // 200

    def insert_settings(self, *, staged: bool) -> dict[str, Any]:
        """Settings that write each block as it was read: the rows of one part are in key order and need no new sort.

        Writing a block takes each thread about ten times the block's size in memory. Outside a staging table blocks
        stay under 10 MB, which makes compact parts, because writing wide parts takes twice the memory.
        """
        block = min(14_000_000, self.memory // 14) if staged else min(9_000_000, self.memory // 20)
        return {
            "optimize_on_insert": 0,
            "max_block_size": 262_144,
            "preferred_block_size_bytes": block,
            "min_insert_block_size_bytes": block // 2,
            "min_insert_block_size_rows": 0,
            "min_compress_block_size": 65_536,
            "max_compress_block_size": 65_536,
        }


def tell_apart(warehouse: Warehouse, tables: Tables, ranges: Sequence[Slice]) -> int:
    """Collects the hashes of complex ids, range after range, until memory holds no more; returns how many ranges."""
    settings = _settings(warehouse, staged=False)
    create_anew(warehouse, tables, "complex_ids")
    taken = 0
    for piece in ranges:
        warehouse.execute("detect_complex", piece.parameters | tables.parameters, settings)
        taken += 1
        if warehouse.rows("told_apart", tables.parameters)[0][0] > Budget(warehouse.memory_left).complex_ids:
            break
    return taken


def copy_wholes(warehouse: Warehouse, teams: Teams) -> Counter[int]:
    """Copies small teams by the rule alone, because telling their ids apart would take longer than it saves.

    Returns the number of ids that should be there now, by team, counted on the old table.
    """
    return _by_rule(warehouse, {**teams.parameters, "target": NEW_TABLE, "stamp": 0, "source": OLD_TABLE, **ALL_ROWS})


def copy(warehouse: Warehouse, tables: Tables, piece: Slice) -> int:
    """Copies a piece whose complex ids were told apart.

    Returns the number of ids that should be there now, counted on the old table.
    """
    of = piece.parameters | tables.parameters
    with _as_a_set(warehouse, tables):
        settings = _settings(warehouse, staged=tables.staged)
        decided_rows, expected, undecided = _decided(warehouse, tables, piece)
        if expected:
            warehouse.execute("copy_decided", of, settings)
        expected += max(0, _rows(warehouse, piece) - decided_rows)  # a merge meanwhile leaves fewer rows
        warehouse.execute("copy_simple", of, settings)
    if undecided:
        create_anew(warehouse, tables, "complex_ids")
        warehouse.execute("undecided", of, settings)
        for step in _extracted(warehouse, tables, piece):
            expected += _by_rule(warehouse, of | step).total()
    return expected


def _by_rule(warehouse: Warehouse, of: Mapping[str, Any]) -> Counter[int]:
    settings = _settings(warehouse, staged=of["target"] != NEW_TABLE)
    expected = Counter(dict(warehouse.rows("count_live", of, settings)))
    warehouse.execute("copy_by_rule", of, settings)
    return expected


@contextmanager
def _as_a_set(warehouse: Warehouse, tables: Tables) -> Iterator[None]:
    """Keeps the hashes of complex ids as a set, built once and not by every statement.

    Meanwhile the statements may use less memory, by as much as the set takes.
    """
    create_anew(warehouse, tables, "complex_set")
    warehouse.execute("complex_set_fill", tables.parameters)
    warehouse.set_aside = warehouse.rows("complex_set_bytes", tables.parameters)[0][0]
    try:
        yield
    finally:
        warehouse.set_aside = 0
        forget(warehouse, tables.complex_set)


def _decided(warehouse: Warehouse, tables: Tables, piece: Slice) -> tuple[int, int, int]:
    """Decides complex ids by their latest events, in as many ranges as the memory limit requires.

    Returns the rows of these ids, how many of the ids copy_decided.sql copies, and how many are left for the rule.
    """
    complex_rows = warehouse.rows("told_apart", tables.parameters)[0][1]
    if not complex_rows:
        return 0, 0, 0
    create_anew(warehouse, tables, "latest")
    ranges = [piece]
    if complex_rows > (most := Budget(warehouse.memory_left).deciding_rows):
        in_piece = _rows(warehouse, piece)
        ranges = cut(warehouse, piece, in_piece, math.ceil(in_piece * most / complex_rows))
    settings = _settings(warehouse, staged=True) | DECIDING
    for one in ranges:
        warehouse.execute("decide_by_latest", one.parameters | tables.parameters, settings)
    [(rows, live, undecided)] = warehouse.rows("count_decided", tables.parameters)
    return rows, live, undecided


def _rows(warehouse: Warehouse, piece: Slice, table: str = OLD_TABLE) -> int:
    return int(warehouse.rows("count_rows", {**piece.parameters, "table": table})[0][0])


def _extracted(warehouse: Warehouse, tables: Tables, piece: Piece) -> list[dict[str, Any]]:
    """Extracts the rows of complex ids; returns as many steps as the rule needs to keep to its memory limit."""
    rows = warehouse.rows("told_apart", tables.parameters)[0][1]
    steps = math.ceil(rows / Budget(warehouse.memory_left).rule_rows)
    if rows:
        create_anew(warehouse, tables, "complex_rows")
        warehouse.execute("extract_complex", piece.parameters | tables.parameters, _settings(warehouse, staged=True))
    return [{"source": tables.complex_rows, "steps": steps, "step": step} for step in range(steps)]


def copied(warehouse: Warehouse, piece: Piece) -> Counter[int]:
    """The number of copies of the piece's ids in the new table, by team."""
    return Counter(dict(warehouse.rows("copied", piece.parameters)))


def rows_there(warehouse: Warehouse, ranges: list[Slice]) -> int:
    """Counts all rows of neighbouring ranges in the new table. It takes no time: the primary index counts most rows."""
    return _rows(warehouse, join(ranges), NEW_TABLE) if ranges else 0


def arrived(warehouse: Warehouse, tables: Tables, piece: Slice) -> bool:
    """Whether the new table is replicated and has rows of this staging table, which carry its stamp."""
    return bool(tables.stamp and warehouse.rows("arrived", {**piece.parameters, "stamp": tables.stamp})[0][0])


def mend(warehouse: Warehouse, tables: Tables, piece: Piece) -> int:
    """After a wrong count, finds live ids of which the new table has no row of any version, and copies them.

    There may be some under traffic, because a link may reach the old table first. Returns how many are still missing.
    """
    missing = 0
    for step in absent(warehouse, tables, piece):
        warehouse.execute("copy_by_rule", step, _settings(warehouse, staged=False))
        missing += _not_copied(warehouse, step)
    return missing


def absent(warehouse: Warehouse, tables: Tables, piece: Piece) -> list[dict[str, Any]]:
    """The steps of `copy_by_rule` for live ids of which the new table has no row. Empty if it has them all."""
    of = piece.parameters | tables.parameters | {"target": NEW_TABLE}
    create_anew(warehouse, tables, "complex_ids")
    warehouse.execute("absent", of, _settings(warehouse, staged=False))
    return [of | step for step in _extracted(warehouse, tables, piece) if _not_copied(warehouse, of | step)]


def _not_copied(warehouse: Warehouse, step: Mapping[str, Any]) -> int:
    return int(warehouse.rows("not_copied", step, _settings(warehouse, staged=False))[0][0])


def _settings(warehouse: Warehouse, *, staged: bool) -> dict[str, Any]:
    return Budget(warehouse.memory_left).insert_settings(staged=staged)
