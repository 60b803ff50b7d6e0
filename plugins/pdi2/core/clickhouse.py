"""Runs the named statements of pdi2/sql/clickhouse: bound, limited, recognisable, measured."""

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.query import QueryResult

from pdi2 import sql

POLL_SECONDS = 0.05
PRIORITY = 10
"""Behind every statement that has a priority of its own (1 is the first, 0 is none)."""
SMALLEST_PEAK = 1_000_000
"""Bytes below which a statement was caught before it began to work."""


@dataclass
class Cost:
    """What a stretch of statements took; peak_memory in bytes, None where they were too quick to be seen."""

    seconds: float = 0.0
    peak_memory: int | None = None


class Warehouse(AbstractContextManager["Warehouse"]):
    """One client of ClickHouse, for one purpose (`team 12`) that shows in every statement's log comment."""

    def __init__(self, connect: Callable[[], Client], purpose: str, max_memory_usage: int) -> None:
        self._connect = connect
        self._client = connect()
        self._comment = f"pdi2 {purpose} {uuid.uuid4()}"
        self._purpose = re.sub(r"\W+", "-", purpose)
        self.max_memory_usage = max_memory_usage

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def rows(
        self, name: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """Every row of the named SELECT; String columns come as bytes, for a distinct_id may hold any."""
        return [tuple(row) for row in self._query(name, parameters, settings).result_rows]

    def columns(
        self, name: str, parameters: Mapping[str, Any], settings: Mapping[str, Any] | None = None
    ) -> list[Sequence[Any]]:
        """The same by columns, for more rows."""
        return list(self._query(name, parameters, settings).result_columns)

    def _query(
        self, name: str, parameters: Mapping[str, Any] | None, settings: Mapping[str, Any] | None
    ) -> QueryResult:
        return self._client.query(
            sql.clickhouse(name),
            parameters=dict(parameters or {}),
            settings=self._settings(settings),
            query_formats={"String": "bytes"},
        )

    def execute(
        self, name: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Runs the named statement, which returns nothing."""
        self.command(sql.clickhouse(name), parameters, settings)

    def command(
        self, text: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        self._client.command(text, parameters=dict(parameters or {}), settings=self._settings(settings))

    def insert(self, table: str, columns: list[str], rows: Sequence[Sequence[Any]]) -> None:
        self._client.insert(table, rows, column_names=columns, settings=self._settings())

    def insert_columns(self, table: str, columns: list[str], data: Sequence[Sequence[Any]]) -> None:
        self._client.insert(
            table, data, column_names=columns, column_oriented=True, settings=self._settings({"optimize_on_insert": 0})
        )

    @contextmanager
    def measured(self) -> Iterator[Cost]:
        """Measures this client's statements; the figures are there when the block ends."""
        cost = Cost()
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(cost, done), daemon=True)
        watcher.start()
        started = time.monotonic()
        try:
            yield cost
        finally:
            cost.seconds = time.monotonic() - started
            done.set()
            watcher.join()

    def _watch(self, cost: Cost, done: threading.Event) -> None:
        """A second client looks at system.processes: chDB tells a statement's memory nowhere else."""
        with self._connect() as client:
            while not done.wait(POLL_SECONDS):
                seen = client.query(sql.clickhouse("peak_memory"), parameters={"log_comment": self._comment})
                peak = seen.result_rows[0][0]
                if peak > SMALLEST_PEAK:
                    cost.peak_memory = max(cost.peak_memory or 0, peak)

    def kill(self) -> None:
        """Ends whatever statement of this client is still at work; from any thread or signal handler."""
        with self._connect() as client:
            client.command(sql.clickhouse("kill"), parameters={"log_comment": self._comment})

    def _settings(self, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {
            "query_id": f"pdi2-{self._purpose}-{uuid.uuid4()}",
            "log_comment": self._comment,
            "max_memory_usage": self.max_memory_usage,
            "priority": PRIORITY,
            **(more or {}),
        }
