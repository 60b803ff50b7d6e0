"""chDB behind the demo server: makes the engine of one process look like a server's, one statement at a time.

The engine gives every statement its own id. The client's id is passed in the setting `query_cache_tag`, and statements
that kill queries, or read `FROM system.processes` or `system.query_log`, are rewritten to see the client's id.
"""

import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chdb

STREAMED = {"Native", "TabSeparated", "TSV", "TabSeparatedRaw", "TSVRaw", "CSV", "RowBinary", "JSONEachRow"}
"""Formats without a header or footer, whose blocks can be sent one after the other. Others are held in memory."""

HEAD = 1 << 16
SPACE = rb"(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*"
TEXT = rb"(?:[^'`\"]|'(?:[^'\\]|\\.)*'|`[^`]*`|\"[^\"]*\")*?"
INSERT = re.compile(
    rb"(?is)" + SPACE + rb"(INSERT\s+INTO\b" + TEXT + rb")(\bSETTINGS\b" + TEXT + rb")?"
    rb"\bFORMAT\s+(\w+)[ \t]*(?:\r?\n|\Z)?"
)
"""An insert with data: what precedes its settings, the settings, and the format. The data follows after the match."""
COMPUTED = re.compile(rb"(?i)\b(?:SELECT|VALUES)\b")
INPUT = re.compile(rb"(?i)\bFROM\s+input\s*\(")
EMPTY = re.compile(rb"(?s)" + SPACE + rb";?\s*\Z")
KILL = re.compile(rb"(?is)" + SPACE + rb"KILL\s+QUERY\b")
USE = re.compile(rb"(?is)" + SPACE + rb"USE\b")
FORMAT = re.compile(rb"(?i)\bFORMAT\s+(\w+)\s*(?:\bSETTINGS\b[^;]*)?;?\s*\Z")
QUERY_ID = re.compile(rb"\b(?:initial_)?query_id\b")
QUERIES = re.compile(rb"(?i)\b(FROM|JOIN)\s+(system\s*\.\s*(?:processes|query_log))\b")

CLIENTS_ID = rb"if(Settings['query_cache_tag'] = '', query_id, Settings['query_cache_tag'])"
AS_CLIENTS_KNOW_THEM = (
    rb"\1 (SELECT * REPLACE (" + CLIENTS_ID + rb" AS query_id, " + CLIENTS_ID + rb" AS initial_query_id,"
    rb" mapFilter((name, _) -> name NOT IN ('query_cache_tag', 'implicit_select'), Settings) AS Settings)"
    rb" FROM \2 WHERE query NOT LIKE 'SET query_cache_tag%')"
)

CONFIG = """<clickhouse>
    <max_server_memory_usage>{memory}</max_server_memory_usage>
    <query_log><database>system</database><table>query_log</table></query_log>
    {more}
</clickhouse>"""
SHARDS = """<remote_servers><posthog>
        <shard><replica><host>127.0.0.1</host><port>1</port></replica></shard>
        <shard><replica><host>127.0.0.1</host><port>1</port></replica></shard>
    </posthog></remote_servers>"""
"""A cluster of two shards, neither of which exists."""


class ServerError(Exception):
    """An error with ClickHouse's code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class Query:
    """A statement as its client wants it run, and what has become known about it since."""

    statement: bytes
    query_id: str
    params: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    database: str = ""
    format: str = "TabSeparated"
    session_id: str = ""
    session_timeout: float = 60
    session_check: bool = False

    read_only: bool = field(default=False, init=False)
    progress: dict[str, int] = field(default_factory=dict, init=False)


@dataclass
class Session:
    connection: Any
    database: str = "default"
    busy: bool = False
    expires: float = 0


class Engine:
    def __init__(self, path: Path, max_memory: int = 0, more: str = SHARDS) -> None:
        """`max_memory` is the server's limit, whose errors begin with "(total)"; 0 means the engine's own limit.

        `more` is added to ClickHouse's configuration.
        """
        path.mkdir(parents=True, exist_ok=True)
        self.path = str(path.resolve())
        self.sessions: dict[str, Session] = {}
        self.running: dict[str, Query] = {}
        self.lock = threading.Lock()
        with tempfile.NamedTemporaryFile("w", suffix=".xml") as config:
            config.write(CONFIG.format(memory=max_memory, more=more))
            config.flush()
            self.first = chdb.connect(f"{self.path}?config-file={config.name}")
        self.version, self.timezone = self.ask("SELECT version(), timezone()")[0]
        names = self.ask("SELECT errorCodeToName(number) FROM numbers(1100)")
        self.error_names = {code: name for code, [name] in enumerate(names)}

    def close(self) -> None:
        for session in self.sessions.values():
            session.connection.close()
        self.first.close()

    def ask(self, sql: str) -> list[list[str]]:
        with chdb.connect(self.path) as connection:
            return _rows(connection, sql)

    def kill(self, query: Query) -> None:
        self.ask(f"KILL QUERY WHERE Settings['query_cache_tag'] = {_quoted(query.query_id)} ASYNC")

    def sample_memory(self) -> None:
        """Note the most memory that each running statement has held so far."""
        tag = "Settings['query_cache_tag']"
        sql = f"SELECT {tag}, peak_memory_usage FROM system.processes WHERE {tag} != ''"
        for query_id, peak in self.ask(f"{sql} SETTINGS log_queries = 0"):
            if (query := self.running.get(query_id)) and int(peak) > 0:
                query.progress["memory_usage"] = int(peak)

    def run(self, query: Query) -> Iterator[bytes]:
        """The answer, piece by piece. The first `next` starts the statement; closing cancels it."""
        try:
            with self._announced(query), self._connection(query) as connection:
                connection.set_progress_callback(query.progress.update)
                insert = INSERT.match(query.statement[:HEAD])
                if insert and not COMPUTED.search(insert[1]):
                    yield from _insert(connection, query, insert)
                else:
                    yield from _answer(connection, query)
        except Exception as error:
            raise _server_error(error) from error

    @contextmanager
    def _announced(self, query: Query) -> Iterator[None]:
        with self.lock:
            if query.query_id in self.running:
                raise ServerError(216, f"Query with id = {query.query_id} is already running")
            self.running[query.query_id] = query
        try:
            yield
        finally:
            del self.running[query.query_id]

    @contextmanager
    def _connection(self, query: Query) -> Iterator[Any]:
        """A connection with the query's settings and database: a new one, or its session's, restored afterwards."""
        settings = {"query_cache_tag": query.query_id, "implicit_select": "0"} | query.settings
        if not query.session_id:
            with chdb.connect(self.path) as connection:
                _prepare(connection, settings, query.database)
                yield connection
            return
        session = self._take(query)
        undo = "SET query_cache_tag = DEFAULT"
        try:
            undo = ", ".join((undo, *_current(session.connection, query.settings)))
            _prepare(session.connection, settings, query.database or session.database)
            yield session.connection
            if USE.match(query.statement):
                session.database = _rows(session.connection, "SELECT currentDatabase()")[0][0]
        finally:
            try:
                session.connection.query(undo)
            finally:
                session.expires, session.busy = time.monotonic() + query.session_timeout, False

    def _take(self, query: Query) -> Session:
        with self.lock:
            now = time.monotonic()
            for name, session in list(self.sessions.items()):
                if not session.busy and session.expires < now:
                    self.sessions.pop(name).connection.close()
            name = query.session_id
            if name not in self.sessions and query.session_check:
                raise ServerError(372, f"Session {name} not found")
            session = self.sessions.get(name) or Session(chdb.connect(self.path))
            if session.busy:
                raise ServerError(373, f"Session {name} is locked by a concurrent client")
            session.busy = True
            self.sessions[name] = session
            return session


def _insert(connection: Any, query: Query, insert: re.Match[bytes]) -> Iterator[bytes]:
    """The engine takes data in any format, but only from a file."""
    into, settings, data_format = insert.groups(b"")
    with tempfile.NamedTemporaryFile() as data:
        data.write(memoryview(query.statement)[insert.end() :])
        data.flush()
        source = f" FROM INFILE {_quoted(data.name)} ".encode()
        connection.query(into + source + settings + b" FORMAT " + data_format, "TSV", params=query.params)
    yield b""


def _answer(connection: Any, query: Query) -> Iterator[bytes]:
    statement, head = query.statement, query.statement[:HEAD]
    if EMPTY.match(statement):
        raise ServerError(62, "Syntax error: Empty query")
    if INSERT.match(head) and INPUT.search(head):  # the engine accepts this, but inserts nothing
        raise ServerError(48, "INSERT ... SELECT ... FROM input() is not implemented")
    kind = connection._conn.classify_query(statement)
    query.read_only = kind["query_class"].name == "READ_ONLY"
    if query.read_only and kind["statement_count"] > 1:
        raise ServerError(62, "Syntax error (Multi-statements are not allowed)")
    if named := FORMAT.search(statement[-HEAD:]):
        query.format = named[1].decode()
    statement = QUERIES.sub(AS_CLIENTS_KNOW_THEM, statement)
    if KILL.match(head):
        statement = QUERY_ID.sub(b"Settings['query_cache_tag']", statement)
    if query.read_only and query.format in STREAMED:
        with _streamed(connection, query, statement) as pieces:
            if pieces is not None:
                yield from (piece.bytes() for piece in pieces)
                return
    yield connection.query(statement, query.format, params=query.params).bytes()


@contextmanager
def _streamed(connection: Any, query: Query, statement: bytes) -> Iterator[Any]:
    """The answer's blocks; None for statements that the engine cannot stream, such as EXPLAIN."""
    try:
        pieces = connection.send_query(statement, query.format, params=query.params)
    except RuntimeError as error:
        if "Streaming query is not supported" not in str(error):
            raise
        pieces = None
    if pieces is None:
        yield None
        return
    with pieces:
        yield pieces


def _prepare(connection: Any, settings: dict[str, str], database: str) -> None:
    for name in settings:
        if not name.isidentifier():
            raise ServerError(115, f"Unknown setting '{name}'")
    if database:
        connection.query("USE `" + database.replace("\\", "\\\\").replace("`", "\\`") + "`")
    connection.query("SET " + ", ".join(f"{name} = {_quoted(value)}" for name, value in settings.items()))


def _current(connection: Any, settings: dict[str, str]) -> list[str]:
    """SET assignments that restore these settings to what they are now."""
    names = ", ".join(map(_quoted, settings)) or "''"
    changed = f"SELECT name, value FROM system.settings WHERE changed AND name IN ({names})"
    now = {name: f"'{value}'" for name, value in _rows(connection, changed)}  # TSV's escapes are also SQL's
    return [f"{name} = {now.get(name, 'DEFAULT')}" for name in settings if name.isidentifier()]


def _rows(connection: Any, sql: str) -> list[list[str]]:
    return [line.split("\t") for line in connection.query(sql, "TSV").bytes().decode().splitlines()]


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _server_error(error: Exception) -> ServerError:
    """The engine's error, without the prefix that the binding adds and without the name at its end."""
    if isinstance(error, ServerError):
        return error
    found = re.search(r"Code: (\d+)\. DB::Exception: (.*?)(?: \([A-Z_0-9]+\))?\s*\Z", str(error), re.DOTALL)
    return ServerError(int(found[1]), found[2]) if found else ServerError(1001, str(error))
