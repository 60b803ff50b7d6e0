"""Runs the named statements of pdi2/sql/clickhouse: bound, limited, recognisable, measured."""

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any

from clickhouse_connect.driver.binding import format_query_value
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, Error

from pdi2 import sql
from pdi2.core.engines.exactness import LATE, OF_TABLES, USUAL, WHOLE, Setting
from pdi2.core.engines.failures import describe

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
PRIORITY = 10
"""Behind every statement that has a priority of its own (1 is the first, 0 is none)."""
THREADS = 2
"""Of a statement. Each thread has memory of its own, so the number of the server's cores must not decide."""
CONSISTENT = {
    "insert_quorum_timeout": 20_000,
    "insert_quorum_parallel": 1,
    "select_sequential_consistency": 0,
    "insert_deduplicate": 0,
    "deduplicate_insert": "disable",
    "async_insert": 0,
    "max_parallel_replicas": 1,
}
"""With Warehouse.quorum: an insert is acknowledged once most replicas have it, each is written even if it repeats an
earlier one, and one replica answers a SELECT. No difference where a table is not replicated. docs/clusters.md says why,
one by one."""
LONGEST_STATEMENT = 1 << 24
"""Bytes. ClickHouse's own 256 KB are less than the ids that go into one statement."""
IN_MEMORY = {"max_bytes_before_external_group_by": 0, "max_bytes_ratio_before_external_group_by": 0}
"""The GROUP BY that ClickHouse has since 26.8 may crash the server where it spills and meets a memory limit."""
INSERT = re.compile(r"^INSERT INTO", re.MULTILINE)
DELETE = re.compile(r"^DELETE FROM (\w+)$", re.MULTILINE)
REMOVING = {"lightweight_deletes_sync": 0, "mutations_sync": 0, "lightweight_delete_mode": "alter_update"}
"""A DELETE is a mutation in the background. A server that does not know the first setting waits by itself."""
LOOKS = 8
"""Of new connections, at the servers they lead to."""
TELL_EVERY_SECONDS = 20.0
SMALLEST_PEAK = 1_000_000
"""Bytes below which a statement was caught before it began to work."""


@dataclass
class Cost:
    """What a stretch of statements took; peak_memory in bytes, None where they were too quick to be seen."""

    seconds: float = 0.0
    peak_memory: int | None = None


def spilling(memory: int) -> dict[str, int]:
    """Settings of a statement whose GROUP BY goes to disk above two thirds of `memory` bytes: that of before 26.8."""
    return {"max_bytes_before_external_group_by": memory * 2 // 3, "enable_adaptive_aggregator": 0}


def _tell_of_silence(text: str, over: threading.Event) -> None:
    began = time.monotonic()
    while not over.wait(TELL_EVERY_SECONDS):
        gist = " ".join(re.sub(r"--.*", "", text).split())[:80]
        log.info("ClickHouse has not answered for %.0f s: %s ...", time.monotonic() - began, gist)


class Warehouse(AbstractContextManager["Warehouse"]):
    """One client of ClickHouse, for one purpose (`team 12`) that shows in every statement's log comment."""

    def __init__(self, connect: Callable[[], Client], purpose: str, max_memory_usage: int) -> None:
        self._connect = connect
        self._client = self._open()
        self._comment = f"pdi2 {purpose} {uuid.uuid4()}"
        self._purpose = re.sub(r"\W+", "-", purpose)
        self.max_memory_usage = max_memory_usage
        self.set_aside = 0
        """Bytes of it that a table in memory takes."""
        self.refused: str | None = None
        """What the server said where the user may not even have a whole answer."""

    @property
    def memory_left(self) -> int:
        """What a statement may use; 0 is no limit, to ClickHouse too."""
        return max(self.max_memory_usage - self.set_aside, 1) if self.set_aside else self.max_memory_usage

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
        text = sql.clickhouse(name, parameters)
        with self._attended(text):
            result = self._client.query(
                text,
                parameters=sql.to_bind(name, parameters),
                settings=self._settings(settings),
                query_formats={"String": "bytes"},
            )
        return [tuple(row) for row in result.result_rows]

    def execute(
        self, name: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Runs the named statement, which returns nothing."""
        self.command(sql.clickhouse(name, parameters), sql.to_bind(name, parameters), settings)

    def command(
        self, text: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        """An INSERT ... SELECT carries its settings itself: to set and reset them takes chDB's client 15 ms."""
        chosen = self._settings(settings)
        if not INSERT.search(text):
            chosen = {name: value for name, value in chosen.items() if name not in WHOLE}  # it answers nothing
        else:
            query_id = {"query_id": chosen.pop("query_id")}
            text = _with_settings(text, chosen)
            chosen = query_id
        with self._attended(text):
            self._client.command(text, parameters=dict(parameters or {}), settings=chosen)

    def define(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Runs the named statement, which makes or drops a table and needs no setting."""
        chosen = self._settings()
        needed = {name: chosen[name] for name in ("query_id", "log_comment", *OF_TABLES) if name in chosen}
        text = sql.clickhouse(name, parameters)
        with self._attended(text):
            self._client.command(text, settings=needed)

    def remove(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Runs the named DELETE of rows of the new table, in the background.

        A table with projections refuses a lightweight one (344), and gets one that writes the parts it touches anew.
        """
        text = sql.clickhouse(name, parameters)
        if self.rows("has_projections")[0][0]:
            text = DELETE.sub(r"ALTER TABLE \1 DELETE", text)
        self.command(text, sql.to_bind(name, parameters), REMOVING)

    def insert(self, table: str, columns: list[str], rows: Sequence[Sequence[Any]]) -> None:
        settings = self._settings()
        token = {"insert_deduplication_token": settings["query_id"]}  # 23.10 heeds it alone, if not replicated
        with self._attended(f"INSERT INTO {table}"):
            self._client.insert(table, rows, column_names=columns, settings=settings | token)

    @cached_property
    def known(self) -> dict[str, Setting]:
        """All settings of this server with their values for this user, whose profile may forbid the very look."""
        try:
            found = self._ask_first("settings")
        except DatabaseError as error:  # preflight tells of it; with these settings any other statement fails too
            self.refused = describe(error)
            found = self._ask_first("settings")
        return {name: Setting(value, least, most, bool(readonly)) for name, value, least, most, readonly in found}

    @cached_property
    def quorum(self) -> str | int:
        """What an insert into the new table waits for: most replicas. With "auto" the only one would wait for a second
        to fetch, in vain (319). Which it is, is looked up once: a task has a Warehouse of its own.
        """
        return 0 if self._ask_first("only_replica") else "auto"

    def _ask_first(self, name: str) -> Sequence[Sequence[Any]]:
        """The named look, on which the settings of all other statements depend."""
        there = self._client.server_settings
        whole = {name: value for name, value in WHOLE.items() if name not in LATE or name in there}
        text = sql.clickhouse(name)
        return self._client.query(text if self.refused else _with_settings(text, whole)).result_rows

    def servers(self) -> set[str]:
        """Names of the servers that new connections lead to: several behind a balancer."""
        found = set()
        for _ in range(LOOKS):
            self._client.close_connections()  # its pool would keep to one server
            found.add(str(self._client.command(sql.clickhouse("host"))))
        return found

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
        try:
            with self._connect() as client:
                while not done.wait(POLL_SECONDS):
                    seen = client.query(sql.clickhouse("peak_memory"), parameters={"log_comment": self._comment})
                    peak = seen.result_rows[0][0]
                    if peak > SMALLEST_PEAK:
                        cost.peak_memory = max(cost.peak_memory or 0, peak + self.set_aside)
        except ClickHouseError as error:  # the statement itself says what becomes of the work
            log.info("The memory of the statements is not measured further: %s", describe(error))

    def kill(self) -> None:
        """Ends whatever statement of this client is still at work; from any thread or signal handler."""
        with self._connect() as client:
            client.command(sql.clickhouse("kill"), parameters={"log_comment": self._comment})

    @contextmanager
    def _attended(self, text: str) -> Iterator[None]:
        """The log tells of a statement that takes long. One whose answer the client no longer waits for goes on in
        ClickHouse, and keeps the session: it is killed there, and the next one gets a session of its own.
        """
        over = threading.Event()
        threading.Thread(target=_tell_of_silence, args=(text, over), daemon=True).start()
        try:
            yield
        except Error as error:
            if error.code is None:
                try:
                    self.kill()
                    given_up, self._client = self._client, self._open()
                    given_up.close()
                except ClickHouseError as another:
                    log.info("Whether the statement goes on is not known: %s", describe(another))
            raise
        finally:
            over.set()

    def _open(self) -> Client:
        client = self._connect()
        client.query_limit = 0  # a connection may ask the library to cut every answer short
        return client

    def sent(self, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The settings of a statement, with `more`, as far as this server has them.

        What makes answers whole is always sent; of the rest, what is not so anyway.
        """
        chosen = {
            **WHOLE,
            **USUAL,
            **CONSISTENT,
            "insert_quorum": self.quorum,
            **IN_MEMORY,
            "max_memory_usage": self.memory_left,
            "priority": PRIORITY,
            "max_threads": THREADS,
            "max_query_size": LONGEST_STATEMENT,
            **(more or {}),
        }
        return {
            name: value
            for name, value in chosen.items()
            if name in self.known and (name in WHOLE or not self.known[name].is_at(value))
        }

    def _settings(self, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {
            "query_id": f"pdi2-{self._purpose}-{uuid.uuid4()}",
            "log_comment": self._comment,
            **self.sent(more),
        }


def _with_settings(text: str, settings: Mapping[str, Any]) -> str:
    return f"{text}\nSETTINGS " + ", ".join(f"{name} = {format_query_value(value)}" for name, value in settings.items())
