"""Runs the named statements of pdi2/sql/postgres on one psycopg connection."""

from collections.abc import Mapping
from typing import Any

from psycopg import Connection, Cursor
from psycopg.rows import RowFactory, tuple_row

from pdi2 import sql


def execute(
    connection: Connection[Any],
    name: str,
    parameters: Mapping[str, Any] | None = None,
    row_factory: RowFactory[Any] = tuple_row,
) -> Cursor[Any]:
    cursor = connection.cursor(row_factory=row_factory)
    return cursor.execute(sql.postgres(name).encode(), dict(parameters or {}))


def value(connection: Connection[Any], name: str, parameters: Mapping[str, Any] | None = None) -> Any:
    """The first column of the first row; None if there is no row."""
    row = execute(connection, name, parameters).fetchone()
    return row[0] if row else None
