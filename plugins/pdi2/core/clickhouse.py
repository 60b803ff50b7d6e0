"""Runs the named statements of pdi2/sql/clickhouse: bound, limited, recognisable, measured."""

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from clickhouse_connect.driver.client import Client

from pdi2 import sql

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Execution:
    """What a finished statement cost; peak_memory in bytes, None where it was too quick to be seen."""

    seconds: float
    peak_memory: int | None


class Warehouse(AbstractContextManager["Warehouse"]):
    """One client of ClickHouse, for one purpose (`team 12`) that shows in every statement's log comment."""

    def __init__(self, connect: Callable[[], Client], purpose: str, max_memory_usage: int) -> None:
        self._connect = connect
        self._client = connect()
        self.purpose = purpose
        self.max_memory_usage = max_memory_usage

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def rows(self, name: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Every row of the named SELECT; String columns come as bytes, for a distinct_id may hold any."""
        result = self._client.query(
            sql.clickhouse(name),
            parameters=dict(parameters or {}),
            settings=self._settings(self.purpose),
            query_formats={"String": "bytes"},
        )
        return [tuple(row) for row in result.result_rows]

    def execute(self, name: str, parameters: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> Execution:
        """Runs the named statement that returns nothing, and measures it."""
        tag = f"{self.purpose} {uuid.uuid4()}"
        started = time.monotonic()
        with _PeakMemory(self._connect, tag) as peak:
            self._client.command(
                sql.clickhouse(name),
                parameters=dict(parameters),
                settings={**self._settings(tag), **(settings or {})},
            )
        return Execution(time.monotonic() - started, peak.bytes)

    def insert(self, table: str, columns: list[str], rows: list[tuple[Any, ...]]) -> None:
        self._client.insert(table, rows, column_names=columns, settings=self._settings(self.purpose))

    def _settings(self, comment: str) -> dict[str, Any]:
        return {"log_comment": f"pdi2 {comment}", "max_memory_usage": self.max_memory_usage}


class _PeakMemory:
    """Watches system.processes for one statement: chDB tells a finished statement's memory nowhere else."""

    def __init__(self, connect: Callable[[], Client], tag: str) -> None:
        self.bytes: int | None = None
        self._client = connect()
        self._tag = tag
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._client.close()

    def _watch(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            seen = self._client.query(
                sql.clickhouse("peak_memory"), parameters={"log_comment": f"pdi2 {self._tag}"}
            ).result_rows[0][0]
            self.bytes = max(self.bytes or 0, seen) or None
