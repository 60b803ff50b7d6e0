"""Copies a piece, which is a range of a team's key or small teams as wholes, by a few statements, and counts it.

Almost every id has a single row and goes straight through. Of the others, which are told apart first, the latest link
and unlink decide nearly all, and the few that are left go by the rule of winners.sql. Every statement may be run again:
a copied row has a negative version that grows with the time of its event, so it never hides what the application wrote,
and of two copies of an id the later event wins.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pdi2.core.copy.staging import NEW_TABLE, Tables, create_anew, forget
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.state.slices import Slice, Teams, cut, join

Piece = Slice | Teams
OLD_TABLE = "person_distinct_id"
ALL_ROWS = {"steps": 1, "step": 0}


@dataclass(frozen=True)
class Budget:
    """What a statement may use, in bytes, and what follows from it. Bytes a row were measured on ClickHouse 26.9."""

    memory: int

    @property
    def range_rows(self) -> int:
        """Telling complex ids apart takes up to 45 bytes a row."""
        return self.memory // 60

    @property
    def deciding_rows(self) -> int:
        """Deciding by the latest events takes up to 210 bytes a row."""
        return self.memory // 350

    @property
    def rule_rows(self) -> int:
        """The rule and the insert of what it yields take about 185 bytes a row."""
        return self.memory // 250

    @property
    def complex_ids(self) -> int:
        """The set of their hashes takes up to 16 bytes an id, in statements that also insert."""
        return self.memory // 200

    def insert_settings(self, *, staged: bool) -> dict[str, Any]:
        """A block read is a block written: rows of one part come in key order, and need no sorting again.

        Each thread writes blocks, in about ten times their size. Outside a staging table blocks stay under 10 MB,
        which makes compact parts: wide ones take twice the memory to write.
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
    """Collects the hashes of complex ids; returns how many of the ranges were looked through before they were many."""
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
    """Copies small teams by the rule alone, because to tell ids apart takes longer than it saves.

    Returns the ids that should be there now, by team, counted on the old table.
    """
    return _by_rule(warehouse, {**teams.parameters, "target": NEW_TABLE, "stamp": 0, "source": OLD_TABLE, **ALL_ROWS})


def copy(warehouse: Warehouse, tables: Tables, piece: Slice) -> int:
    """Copies what was told apart; returns the ids that should be there now, counted on the old table."""
    of = piece.parameters | tables.parameters
    with _as_a_set(warehouse, tables):
        settings = _settings(warehouse, staged=tables.staged)
        decided_rows, expected, undecided = _decided(warehouse, tables, piece)
        if expected:
            warehouse.execute("copy_decided", of, settings)
        expected += _rows(warehouse, piece) - decided_rows
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
    """The hashes of complex ids as a set that is built once, not by every statement. What it takes, those may not."""
    create_anew(warehouse, tables, "complex_set")
    warehouse.execute("complex_set_fill", tables.parameters)
    warehouse.set_aside = warehouse.rows("complex_set_bytes", tables.parameters)[0][0]
    try:
        yield
    finally:
        warehouse.set_aside = 0
        forget(warehouse, tables.complex_set)


def _decided(warehouse: Warehouse, tables: Tables, piece: Slice) -> tuple[int, int, int]:
    """Decides complex ids by their latest events, in as many parts of the key as that needs to keep to its memory.

    Returns their rows, how many of them copy_decided.sql copies, and how many are left for the rule.
    """
    complex_rows = warehouse.rows("told_apart", tables.parameters)[0][1]
    if not complex_rows:
        return 0, 0, 0
    create_anew(warehouse, tables, "latest")
    parts = [piece]
    if complex_rows > (most := Budget(warehouse.memory_left).deciding_rows):
        in_piece = _rows(warehouse, piece)
        parts = cut(warehouse, piece, in_piece, math.ceil(in_piece * most / complex_rows))
    settings = _settings(warehouse, staged=True) | {"max_block_size": 65_536}  # 23.6 reserves whole blocks: 50 MB
    for part in parts:
        warehouse.execute("decide_by_latest", part.parameters | tables.parameters, settings)
    [(rows, live, undecided)] = warehouse.rows("count_decided", tables.parameters)
    return rows, live, undecided


def _rows(warehouse: Warehouse, piece: Slice) -> int:
    return int(warehouse.rows("source_rows", piece.parameters)[0][0])


def _extracted(warehouse: Warehouse, tables: Tables, piece: Piece) -> list[dict[str, Any]]:
    """Extracts the rows of complex ids in as many steps as the rule needs to keep to its memory."""
    rows = warehouse.rows("told_apart", tables.parameters)[0][1]
    steps = math.ceil(rows / Budget(warehouse.memory_left).rule_rows)
    if rows:
        create_anew(warehouse, tables, "complex_rows")
        warehouse.execute("extract_complex", piece.parameters | tables.parameters, _settings(warehouse, staged=True))
    return [{"source": tables.complex_rows, "steps": steps, "step": step} for step in range(steps)]


def copied(warehouse: Warehouse, piece: Piece) -> Counter[int]:
    """The copies of the piece's ids in the new table, by team."""
    return Counter(dict(warehouse.rows("copied", piece.parameters)))


def rows_there(warehouse: Warehouse, ranges: list[Slice]) -> int:
    """All rows of neighbouring ranges in the new table; the primary index tells most of them, so it takes no time."""
    return int(warehouse.rows("rows_there", join(ranges).parameters)[0][0]) if ranges else 0


def mend(warehouse: Warehouse, tables: Tables, piece: Piece) -> int:
    """Looks id by id, where a count did not come up, for what is live and not in the new table in whatever version.

    Under traffic a link reaches the old table before the new one: it is copied. Returns how many ids are missing still.
    """
    settings = _settings(warehouse, staged=False)
    of = piece.parameters | tables.parameters | {"target": NEW_TABLE}
    create_anew(warehouse, tables, "complex_ids")
    warehouse.execute("absent", of, settings)
    missing = 0
    for step in _extracted(warehouse, tables, piece):
        if warehouse.rows("not_copied", of | step, settings)[0][0]:
            warehouse.execute("copy_by_rule", of | step, settings)
            missing += warehouse.rows("not_copied", of | step, settings)[0][0]
    return missing


def _settings(warehouse: Warehouse, *, staged: bool) -> dict[str, Any]:
    return Budget(warehouse.memory_left).insert_settings(staged=staged)
