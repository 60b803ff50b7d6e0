"""The tables that a copy creates and drops: the staging table, where a slice waits until it is whole, and helpers.

A staging table has the structure of the new table, is never replicated, and has no merges. Otherwise ClickHouse would
merge parts while the copy still writes others, and merges take the copy's processors: 12M rows on two processors took
twice as long. The finished parts are handed to the new table by hard links, in about 2 ms per part, and are merged
there; the other replicas fetch them whole.
"""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from clickhouse_connect.driver.exceptions import ClickHouseError, Error

from pdi2.core.cluster.replicas import explained
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import Reaction, describe, reaction
from pdi2.core.state.slices import NEW_TABLE, SMALL_ROWS, Slice, Teams

log = logging.getLogger(__name__)

REPLICATED = re.compile(r"^Replicated(\w+)\('(?:[^'\\]|\\.)*', '(?:[^'\\]|\\.)*'(?:, )?")
"""What replication adds to an engine in system.tables.engine_full: a path in Keeper and the replica's name."""
FORBIDDEN_SETTING = {164, 452}
"""The user's profile is read-only, or forbids a setting."""
OTHERS_FOLLOW = {159, 341}
"""The wait for the other replicas took too long, or one of them is away (ClickHouse's ErrorCodes.cpp)."""


@dataclass(frozen=True)
class Tables:
    """The names of the table that copies are written to and of its helpers.

    The helpers hold the hashes of a piece's complex ids, the same hashes as a set in memory, what their latest events
    decide, and the rows of the ids that these leave undecided.

    `stamp` is the _partition of the copies. A replicated table silently skips a part with the same content as one that
    it attached before, even if that part is gone by now. So the copies of a replicated table carry the microsecond of
    their copy, and no two parts are the same. For other tables `stamp` is 0.
    """

    target: str
    complex_ids: str
    complex_set: str
    latest: str
    complex_rows: str
    stamp: int = 0

    @property
    def staged(self) -> bool:
        return self.target != NEW_TABLE

    @property
    def parameters(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def tables_for(warehouse: Warehouse, piece: Slice | Teams, rows: int) -> Iterator[Tables]:
    """Creates the tables of a copy, and drops them at the end.

    Copies of few rows are written directly to the new table. So are all copies if ClickHouse refuses to hand a staging
    table's parts over to the new table, as it does if the new table is partitioned; the log says so.
    """
    name = f"{NEW_TABLE}_staging_{piece.team_ids[0]}".replace("-", "minus_")
    helpers = (f"{name}_ids", f"{name}_set", f"{name}_latest", f"{name}_rows")
    tables = Tables(NEW_TABLE, *helpers)
    if rows > SMALL_ROWS:
        tables = _staged(warehouse, Tables(name, *helpers)) or tables
    try:
        yield tables
    finally:
        for table in (name, *helpers):
            if not forget(warehouse, table):  # a server that hangs takes minutes for each
                break


def _staged(warehouse: Warehouse, tables: Tables) -> Tables | None:
    """Creates the staging table; None if a trial hand-over of the empty table fails."""
    (engine,) = (row[0].decode() for row in warehouse.rows("staging_engine"))
    _drop(warehouse, tables.target)  # a killed copy may have left one
    plain, replicated = REPLICATED.subn(r"\1(", engine)
    if replicated:
        tables = replace(tables, stamp=time.time_ns() // 1000)
    try:
        warehouse.define("staging_create", tables.parameters | {"engine": plain})
        warehouse.define("staging_settings", tables.parameters)
        warehouse.define("staging_possible", tables.parameters)
    except ClickHouseError as error:
        if reaction(error) is not Reaction.FAIL:
            raise
        log.warning(
            "Copies are written to person_distinct_id2 directly, which is slower: a staging table's parts could not "
            "become its parts. %s",
            describe(error),
        )
        return None
    return tables


def create_anew(warehouse: Warehouse, tables: Tables, helper: str) -> None:
    """Creates an empty helper for a piece, which is faster than emptying the one of the last piece."""
    _drop(warehouse, tables.parameters[helper])
    warehouse.define(f"{helper}_create", tables.parameters)


def waiting(warehouse: Warehouse, tables: Tables) -> tuple[int, int]:
    """Rows and parts in the staging table."""
    rows, parts = warehouse.rows("staging_parts", {"table": tables.target})[0]
    return rows, parts


def hand_over(warehouse: Warehouse, tables: Tables) -> Error | None:
    """Adds all rows of the staging table to the new table, in one step.

    Returns an error if not every active replica has confirmed the rows. The rows may have arrived all the same, so the
    caller must count them.
    """
    if not waiting(warehouse, tables)[0]:
        return None
    try:
        warehouse.define("staging_attach_everywhere" if tables.stamp else "staging_attach", tables.parameters)
    except Error as error:
        if tables.stamp and error.code in FORBIDDEN_SETTING:
            warehouse.define("staging_attach", tables.parameters)
        elif error.code not in OTHERS_FOLLOW:
            raise
        log.warning("The other replicas do not have everything that is copied yet: %s", explained(warehouse, error))
        return error
    return None


def forget_all(warehouse: Warehouse) -> None:
    """Drops what killed copies have left. Call this only when no copy is running."""
    for (table,) in warehouse.rows("staging_tables"):
        forget(warehouse, table.decode())


def forget(warehouse: Warehouse, table: str) -> bool:
    """Drops the table if that is possible. Returns whether ClickHouse has answered."""
    try:
        _drop(warehouse, table)
    except ClickHouseError as error:
        log.warning("The table %s is no longer needed and could not be dropped: %s", table, describe(error))
        return isinstance(error, Error) and error.code is not None
    return True


def _drop(warehouse: Warehouse, table: str) -> None:
    warehouse.define("drop", {"table": table})
