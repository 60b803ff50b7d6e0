"""The tables that a copy makes for itself, and drops: those in which a slice waits until it is whole, and helpers.

A staging table has the structure of the new one and no merges. ClickHouse begins to merge parts while a copy still
writes others, and merges take the copy's processors: of 12M rows on two of them, more than half of its time. What waits
becomes the new table's by links, in about 2 ms a part, and is merged then.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from clickhouse_connect.driver.exceptions import ClickHouseError

from pdi2.core.clickhouse import Warehouse
from pdi2.core.failures import describe
from pdi2.core.slices import SMALL_ROWS, Slice, Teams

log = logging.getLogger(__name__)

NEW_TABLE = "person_distinct_id2"


@dataclass(frozen=True)
class Tables:
    """Names: of the table that copies are written to, and of helpers: the hashes of a piece's complex ids, the same as
    a set in memory, what the latest events of those ids decide, and the rows of those that are left.
    """

    target: str
    complex_ids: str
    complex_set: str
    latest: str
    complex_rows: str

    @property
    def staged(self) -> bool:
        return self.target != NEW_TABLE

    @property
    def parameters(self) -> dict[str, str]:
        return asdict(self)


@contextmanager
def tables_for(warehouse: Warehouse, piece: Slice | Teams, rows: int) -> Iterator[Tables]:
    """Exist for as long as they are needed. Copies of few rows, and those of a table that is replicated or partitioned,
    are written to the new table at once.
    """
    name = f"{NEW_TABLE}_staging_{piece.ids[0]}".replace("-", "minus_")
    staged = rows > SMALL_ROWS and bool(warehouse.rows("staging_possible")[0][0])
    helpers = [f"{name}_{helper}" for helper in ("ids", "set", "latest", "rows")]
    tables = Tables(name if staged else NEW_TABLE, *helpers)
    if staged:
        _drop(warehouse, name)  # what a killed copy has left there is nobody's
        warehouse.define("staging_create", tables.parameters)
        warehouse.define("staging_settings", tables.parameters)
    try:
        yield tables
    finally:
        for table in (name, *helpers):
            forget(warehouse, table)


def create_anew(warehouse: Warehouse, tables: Tables, helper: str) -> None:
    """An empty helper for a piece: sooner made than that of the last one is emptied."""
    _drop(warehouse, tables.parameters[helper])
    warehouse.define(f"{helper}_create", tables.parameters)


def waiting(warehouse: Warehouse, tables: Tables) -> tuple[int, int]:
    """Rows and parts in the staging table."""
    rows, parts = warehouse.rows("staging_parts", {"table": tables.target})[0]
    return rows, parts


def hand_over(warehouse: Warehouse, tables: Tables) -> None:
    """What waits in the staging table is the new table's too from now on, at once and whole."""
    if waiting(warehouse, tables)[0]:
        warehouse.define("staging_attach", tables.parameters)


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
