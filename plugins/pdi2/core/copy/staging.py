"""The tables that a copy makes for itself, and drops: those in which a slice waits until it is whole, and helpers.

A staging table has the structure of the new one, is never replicated, and has no merges. ClickHouse begins to merge
parts while a copy still writes others, and merges take the copy's processors: of 12M rows on two of them, more than
half of its time. What waits becomes the new table's by links, in about 2 ms a part, and is merged then; the other
replicas fetch it whole.
"""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from clickhouse_connect.driver.exceptions import ClickHouseError, Error

from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import Reaction, describe, reaction
from pdi2.core.state.slices import SMALL_ROWS, Slice, Teams

log = logging.getLogger(__name__)

NEW_TABLE = "person_distinct_id2"


REPLICATED = re.compile(r"^Replicated(\w+)\('(?:[^'\\]|\\.)*', '(?:[^'\\]|\\.)*'(?:, )?")
"""What replication adds to an engine, as system.tables.engine_full has it: a path in Keeper, the replica's name."""
FORBIDDEN_SETTING = {164, 452}
"""The user's profile is read-only, or constrains a setting."""
OTHERS_FOLLOW = {159, 341}
"""The wait for the other replicas was too long, or one is away (ClickHouse's ErrorCodes.cpp)."""


@dataclass(frozen=True)
class Tables:
    """Names: of the table that copies are written to, and of helpers: the hashes of a piece's complex ids, the same as
    a set in memory, what the latest events of those ids decide, and the rows of those that are left.

    `stamp` is the _partition of the copies. A replicated table silently leaves out a part of which it attached the
    same content before, even if that was taken away since; so what is attached there carries the microsecond of its
    copy, and is never the same. Everywhere else it is 0, and nothing reads it.
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
    """Exist for as long as they are needed. Copies of few rows are written to the new table at once, and so are all
    where ClickHouse refuses to let a staging table's parts become the new table's, as it does where that is
    partitioned; the log says so.
    """
    name = f"{NEW_TABLE}_staging_{piece.ids[0]}".replace("-", "minus_")
    helpers = (f"{name}_ids", f"{name}_set", f"{name}_latest", f"{name}_rows")
    tables = Tables(NEW_TABLE, *helpers)
    if rows > SMALL_ROWS:
        tables = _staged(warehouse, Tables(name, *helpers)) or tables
    try:
        yield tables
    finally:
        for table in (name, *helpers):
            forget(warehouse, table)


def _staged(warehouse: Warehouse, tables: Tables) -> Tables | None:
    """Makes the staging table. None where it, still empty, cannot be handed over as it will be when it is full."""
    (engine,) = (row[0].decode() for row in warehouse.rows("staging_engine"))
    _drop(warehouse, tables.target)  # what a killed copy has left there is nobody's
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
    """An empty helper for a piece: sooner made than that of the last one is emptied."""
    _drop(warehouse, tables.parameters[helper])
    warehouse.define(f"{helper}_create", tables.parameters)


def waiting(warehouse: Warehouse, tables: Tables) -> tuple[int, int]:
    """Rows and parts in the staging table."""
    rows, parts = warehouse.rows("staging_parts", {"table": tables.target})[0]
    return rows, parts


def hand_over(warehouse: Warehouse, tables: Tables) -> Error | None:
    """What waits in the staging table is the new table's too from now on, at once and whole.

    Returns why not every active replica has it by then, if it may be theirs all the same: whether it is here must be
    counted.
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
        log.warning("Of what is copied, the other replicas do not have all yet: %s", describe(error))
        return error
    return None


def forget_all(warehouse: Warehouse) -> None:
    """Drops what copies that were killed have left. Only for who knows that no copy is at work."""
    for (table,) in warehouse.rows("staging_tables"):
        forget(warehouse, table.decode())


def forget(warehouse: Warehouse, table: str) -> None:
    try:
        _drop(warehouse, table)
    except ClickHouseError as error:
        log.warning("The table %s is of no more use and could not be dropped: %s", table, describe(error))


def _drop(warehouse: Warehouse, table: str) -> None:
    warehouse.define("drop", {"table": table})
