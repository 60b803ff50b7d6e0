"""Runs the named statements of pdi2/sql/clickhouse: binds values, sets limits, marks and measures each statement."""

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

from clickhouse_connect.driver.binding import format_query_value
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, Error

from pdi2 import sql
from pdi2.core.engines.exactness import LATE, OF_TABLES, WHOLE, Setting
from pdi2.core.engines.failures import describe
from pdi2.core.engines.measuring import Cost, measured
from pdi2.core.engines.statement_settings import REMOVING, sent

log = logging.getLogger(__name__)

INSERT = re.compile(r"^INSERT INTO", re.MULTILINE)
DELETE = re.compile(r"^DELETE FROM (\w+)$", re.MULTILINE)
RUNNING_TWICE = (216, 373)
"""The same statement, or another one of the session, is still running."""
SHARED = ("max_concurrent_queries_for_user", "max_concurrent_queries_for_all_users", "max_sessions_for_user")
"""Settings of a profile that limit how many statements run at the same time. 0 means no limit."""
FEW_STATEMENTS = 8
"""As many as the looks at the memory of a few copies could take up."""
LOOKS = 8
"""How many new connections are opened to see which servers they lead to."""
TELL_EVERY_SECONDS = 20.0


@contextmanager
def _telling_of_silence(text: str) -> Iterator[None]:
    """Logs again and again that the statement, or whatever else ClickHouse was asked for, has no answer yet."""
    over = threading.Event()
    began = time.monotonic()

    def tell() -> None:
        while not over.wait(TELL_EVERY_SECONDS):
            gist = " ".join(re.sub(r"--.*", "", text).split())[:80]
            log.info("ClickHouse has not answered for %.0f s: %s ...", time.monotonic() - began, gist)

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        over.set()


class Warehouse(AbstractContextManager["Warehouse"]):
    """One ClickHouse client for one purpose, such as `team 12`, which the log comment of every statement shows."""

    def __init__(self, connect: Callable[[], Client], purpose: str, max_memory_usage: int) -> None:
        self._connect = connect
        self._client = self._open()
        self._comment = f"pdi2 {purpose} {uuid.uuid4()}"
        self._purpose = re.sub(r"\W+", "-", purpose)
        self.max_memory_usage = max_memory_usage
        self.set_aside = 0
        """How many bytes of max_memory_usage an in-memory table takes up."""
        self.refused: str | None = None
        """What the server said, if the user's profile does not even allow the settings in WHOLE."""

    @property
    def memory_left(self) -> int:
        """The memory that a statement may use. 0 means no limit, for ClickHouse too."""
        return max(self.max_memory_usage - self.set_aside, 1) if self.set_aside else self.max_memory_usage

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def rows(
        self, name: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """Every row of the named SELECT. String columns come as bytes, because a distinct_id may hold any bytes. Tuples
        come as tuples, also from a server that names their elements, as 24.7 to 24.9 do unasked."""
        text = sql.clickhouse(name, parameters)
        with self._attended(text):
            result = self._client.query(
                text,
                parameters=sql.to_bind(name, parameters),
                settings=self._settings(settings),
                query_formats={"String": "bytes", "Tuple": "tuple"},
            )
        return [tuple(row) for row in result.result_rows]

    def is_heard(self) -> bool:
        """Whether the settings that are sent reach the server."""
        return self.rows("setting_sent") == [(self._comment.encode(),)]

    def execute(
        self, name: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Runs the named statement, which returns nothing."""
        self.command(sql.clickhouse(name, parameters), sql.to_bind(name, parameters), settings)

    def command(
        self, text: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Runs a statement that returns nothing. An INSERT ... SELECT has its settings in its text, because setting and
        resetting them takes chDB 15 ms."""
        chosen = self._settings(settings)
        if INSERT.search(text):
            query_id = {"query_id": chosen.pop("query_id")}
            text, chosen = _with_settings(text, chosen), query_id
        else:
            chosen = {name: value for name, value in chosen.items() if name not in WHOLE}  # it returns no rows
        with self._attended(text):
            self._client.command(text, parameters=dict(parameters or {}), settings=chosen)

    def define(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Runs the named statement, which creates, changes or drops a table and needs no other settings."""
        chosen = self._settings()
        needed = {name: chosen[name] for name in ("query_id", "log_comment", *OF_TABLES) if name in chosen}
        text = sql.clickhouse(name, parameters)
        with self._attended(text):
            self._client.command(text, settings=needed)

    def remove(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Runs the named DELETE on the new table, in the background.

        A table with projections refuses a lightweight DELETE (344). It gets a DELETE that rewrites the affected parts.
        """
        text = sql.clickhouse(name, parameters)
        if self.rows("has_projections")[0][0]:
            text = DELETE.sub(r"ALTER TABLE \1 DELETE", text)
        self.command(text, sql.to_bind(name, parameters), REMOVING)

    def insert(self, table: str, columns: list[str], rows: Sequence[Sequence[Any]]) -> None:
        settings = self._settings()
        # the only setting that 23.10 heeds on a table that is not replicated
        token = {"insert_deduplication_token": settings["query_id"]}
        given = list(rows)
        with self._attended(f"INSERT INTO {table}"):
            self._client.insert(table, given, column_names=columns, settings=settings | token)
        given.clear()  # the client leaves it in a reference cycle, which `settle` does not collect

    @cached_property
    def known(self) -> dict[str, Setting]:
        """All settings of this server with their values for this user, whose profile may forbid even this query."""
        try:
            found = self._ask_first("settings")
        except DatabaseError as error:  # preflight reports it; every other statement would fail on these settings too
            self.refused = describe(error)
            found = self._ask_first("settings")
        return {name: Setting(value, least, most, bool(readonly)) for name, value, least, most, readonly in found}

    @cached_property
    def quorum(self) -> str | int:
        """How many replicas an insert into the new table waits for: most of them, or none if there is only one.

        With "auto", a single replica would wait in vain for a second one to fetch (319). This is looked up once per
        Warehouse, and each task has its own.
        """
        return 0 if self._ask_first("only_replica") else "auto"

    def _ask_first(self, name: str) -> Sequence[Sequence[Any]]:
        """Runs a named query that the settings of all other statements depend on."""
        there = self._client.server_settings
        whole = {name: value for name, value in WHOLE.items() if name not in LATE or name in there}
        text = sql.clickhouse(name)
        with _telling_of_silence(text):
            return self._client.query(text if self.refused else _with_settings(text, whole)).result_rows

    def servers(self) -> set[str]:
        """The names of the servers that new connections lead to: several if there is a load balancer."""
        text, found = sql.clickhouse("host"), set()
        for _ in range(LOOKS):
            self._client.close_connections()  # its pool would stay with one server
            with _telling_of_silence(text):
                found.add(str(self._client.command(text)))
        return found

    def measured(self) -> AbstractContextManager[Cost]:
        """Measures this client's statements; the figures are complete when the block ends.

        Where the user may run FEW_STATEMENTS or fewer at the same time, their memory is not measured: a look at it
        would take the place of a statement (202).
        """
        may_look = not any(0 < int(self.known[name].value) <= FEW_STATEMENTS for name in SHARED if name in self.known)
        return measured(self._connect if may_look else None, self._comment, lambda: self.set_aside)

    def kill(self) -> None:
        """Ends whatever this client is still running. May be called from any thread or signal handler."""
        with _telling_of_silence("the end of a statement"), self._connect() as client:
            client.command(sql.clickhouse("kill"), parameters={"log_comment": self._comment})

    @contextmanager
    def _attended(self, text: str) -> Iterator[None]:
        """Logs a statement that takes long, and kills it in ClickHouse if the client has stopped waiting for it.

        Otherwise it would go on there and keep the session; the next statement gets a new session. The client itself
        sends a SELECT again if its connection was reset, and is then told that the first one is still running.
        """
        try:
            with _telling_of_silence(text):
                yield
        except Error as error:
            if error.code in (None, *RUNNING_TWICE):
                try:
                    self.kill()
                    given_up, self._client = self._client, self._open()
                    given_up.close()
                except ClickHouseError as another:
                    log.info("It is not known whether the statement is still running: %s", describe(another))
            raise

    def _open(self) -> Client:
        with _telling_of_silence("a new connection"):
            client = self._connect()
        client.query_limit = 0  # a connection may have set a limit that cuts every answer short
        return client

    def sent(self, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The settings of a statement, with `more`, as far as this server knows and needs them."""
        return sent(self.known, {"insert_quorum": self.quorum, "max_memory_usage": self.memory_left, **(more or {})})

    def _settings(self, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {
            "query_id": f"pdi2-{self._purpose}-{uuid.uuid4()}",
            "log_comment": self._comment,
            **self.sent(more),
        }


def _with_settings(text: str, settings: Mapping[str, Any]) -> str:
    return f"{text}\nSETTINGS " + ", ".join(f"{name} = {format_query_value(value)}" for name, value in settings.items())
