"""ClickHouse's HTTP protocol over a chDB before 4, for `make test-matrix`. Needs only the standard library and chDB.

Such a chDB is clickhouse-local: it starts again for every statement. So each request runs in its own process, one at a
time, forked from one that has loaded the engine but never run it. Unlike on a server:

- No statement sees or kills another, and what a process holds in the background ends with it: no merges but OPTIMIZE.
- Before chDB 2 most system tables are missing. LOCAL stands in for those that the migration reads.
- DROP returns at once: SYNC would wait for a thread that is not there. So would DROP and TRUNCATE of a table with parts
  that a merge has replaced, which stay for minutes: so these parts are removed first.
- ClickHouse 23.6 as clickhouse-local has no threads for mutations, and a DELETE would wait for ever: it is refused.
"""

import email
import email.policy
import fcntl
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import ForkingMixIn
from typing import Any
from urllib.parse import parse_qsl, urlsplit

NOT_SETTINGS = """
    query query_id database default_format session_id wait_end_of_query buffer_size client_protocol_version
    lightweight_deletes_sync
""".split()  # noqa: SIM905
"""A DELETE always waits, because nothing goes on in the background after its statement."""
NO_MUTATIONS = "clickhouse-local 23.6 has no threads for mutations"
INSERT = re.compile(rb"\s*(INSERT\s+INTO\s[^\n]*?)\s+FORMAT\s+(\w+)[ \t]*\n", re.IGNORECASE)
MUTATION = re.compile(rb"(?is)(?:\s|--[^\n]*\n)*(?:DELETE\s+FROM|ALTER\s+TABLE\s+\S+\s+(?:DELETE|UPDATE))\b")
CONNECTING = re.compile(rb"SELECT (version\(\), timezone\(\)|name, value, readonly FROM system.settings|1 AS check\b)")
SYNC = re.compile(rb"(?is)(\s*DROP\s.*?)\s+SYNC\s*\Z")
DROPPING = re.compile(rb"(?is)(?:\A|; )\s*(?:DROP|TRUNCATE)\s")
PART = re.compile(r"(\w+?)_(\d+)_(\d+)_(\d+)(?:_(\d+))?")
PARAMETER = re.compile(rb"\{(\w+):(\w+(?:\(\w+\))?)\}")
ERROR = re.compile(r"Code: (\d+)\. DB::(?:Errno)?Exception: .*", re.DOTALL)

LOCAL = [
    """
    CREATE VIEW system.parts AS
    SELECT database, name AS table, 1 AS active, 'all' AS partition_id, total_rows AS rows, total_bytes AS bytes_on_disk
    FROM system.tables
    WHERE engine LIKE '%MergeTree'
    """,
    """
    CREATE VIEW system.disks AS
    SELECT 'default' AS name, toUInt64(filesystemAvailable()) AS free_space, filesystemCapacity() AS total_space
    """,
    """
    CREATE VIEW system.storage_policies AS
    SELECT 'default' AS policy_name, 'default' AS volume_name, ['default'] AS disks
    """,
    """
    CREATE TABLE system.mutations
        (database String, table String, mutation_id String, command String, create_time DateTime, parts_to_do Int64,
         is_done UInt8, latest_fail_reason String)
    ENGINE = Memory
    """,
    "CREATE VIEW system.metrics AS SELECT 'MemoryTracking' AS metric, toInt64(0) AS value",
    """
    CREATE TABLE system.processes (peak_memory_usage Int64, Settings Map(String, String)) ENGINE = Memory
    """,
    """
    CREATE TABLE system.replicas
        (database String, table String, zookeeper_path String, replica_name String, is_readonly UInt8,
         is_session_expired UInt8, active_replicas UInt8, total_replicas UInt8, replica_is_active Map(String, UInt8),
         absolute_delay UInt64, queue_size UInt32, last_queue_update_exception String, zookeeper_exception String)
    ENGINE = Memory
    """,
    "CREATE TABLE system.clusters (cluster String, shard_num UInt32) ENGINE = Memory",
]


class Front(BaseHTTPRequestHandler):
    def __init__(self, *arguments: Any, engine: Any, path: Path) -> None:
        self.engine, self.path_of_data = engine, path
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.read_body()
        url = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True, errors="surrogateescape"))
        if self.headers.get_content_type() == "multipart/form-data":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            for part in email.message_from_bytes(head + body, policy=email.policy.HTTP).iter_parts():
                name = part.get_param("name", header="Content-Disposition")
                url[name] = part.get_payload(decode=True).decode(errors="surrogateescape")
            body = b""
        statement = b"\n".join(filter(None, (_bytes(url.get("query", "")), body)))
        answer, error = self.remembered(statement, url) if statement else (b"Ok.\n", "")
        answer = error.encode() or answer
        self.send_response(500 if error else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("X-ClickHouse-Format", url.get("default_format", "TabSeparated"))
        if error:
            self.send_header("X-ClickHouse-Exception-Code", ERROR.match(error)[1])
        self.end_headers()
        self.wfile.write(answer)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(chunks)

    def remembered(self, statement: bytes, url: dict[str, str]) -> tuple[bytes, str]:
        """Asks the engine only once what every client asks when it connects."""
        if not CONNECTING.match(statement):
            return self.run(statement, url)
        memory = self.path_of_data / f"answer-{sha256(statement).hexdigest()}"
        if not memory.exists():
            memory.write_bytes(self.run(statement, url)[0])
        return memory.read_bytes(), ""

    def run(self, statement: bytes, url: dict[str, str]) -> tuple[bytes, str]:
        """The answer and the error, if any, of a statement and what its URL says of it."""
        if self.engine.version.startswith("23.6.") and MUTATION.match(statement):
            return b"", f"Code: 48. DB::Exception: {NO_MUTATIONS}"
        statement = SYNC.sub(rb"\1", statement)
        settings = {name: value for name, value in url.items() if name not in NOT_SETTINGS}
        before = b""
        if url.get("database"):
            before += b"USE `" + _bytes(url["database"]) + b"`; "
        if not self.engine.takes_path:
            statement = _bound(statement, settings)
        if settings:
            before += b"SET " + b", ".join(_bytes(name) + b" = " + _quoted(settings[name]) for name in settings) + b"; "
        with tempfile.NamedTemporaryFile() as data:
            if insert := INSERT.match(statement):
                data.write(memoryview(statement)[insert.end() :])
                data.flush()
                statement = b"%b FROM INFILE '%b' FORMAT %b" % (insert[1], data.name.encode(), insert[2])
            return self.engine.run(before + statement, url.get("default_format", "TabSeparated"))

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


class Engine:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = _library()
        self.takes_path = "path" in str(self.library.query.__doc__)
        if not self.takes_path:  # chDB 0: clickhouse-local reads config.xml where it stands
            (path / "config.xml").write_text(f"<clickhouse><path>{path}/</path></clickhouse>")
            (path / "tmp").mkdir()  # where a GROUP BY spills to; clickhouse-server makes it as it starts
            os.chdir(path)
        self.version = self.alone("SELECT version()").decode().strip()
        if b"parts" not in self.alone("SHOW TABLES FROM system LIKE 'parts'"):
            for statement in LOCAL:
                self.alone(statement)

    def alone(self, statement: str) -> bytes:
        """Runs it in its own process."""
        read, write = os.pipe()
        if not os.fork():
            answer, error = self.run(statement.encode(), "TabSeparated")
            os.write(write, answer)
            os._exit(bool(error) and print(error, file=sys.stderr) is None)
        os.close(write)
        with os.fdopen(read, "rb") as answer_of_child:
            answer = answer_of_child.read()
        if os.wait()[1]:
            raise RuntimeError(f"{statement!r} failed")
        return answer

    def run(self, statement: bytes, answer_format: str) -> tuple[bytes, str]:
        """At most once in a process: a second time crashes it now and then. Errors may be on standard error alone."""
        fcntl.flock(os.open(self.path / "turn", os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)  # until this process ends
        if DROPPING.search(statement):
            _remove_replaced_parts(self.path)
        for memory in ("set_statements", "default_database"):  # chDB 1 and 2 remember every SET and USE
            (self.path / memory).unlink(missing_ok=True)
        with tempfile.TemporaryFile() as said:
            screen = os.dup(2)
            os.dup2(said.fileno(), 2)
            try:
                where = {"path": str(self.path)} if self.takes_path else {}
                result = self.library.query(statement.decode(errors="surrogateescape"), answer_format, **where)
                answer = bytes(result.bytes() if self.takes_path else result.get_memview() if result.size() else b"")
                error = getattr(result, "error_message", str)()
            except RuntimeError as failure:
                answer, error = b"", str(failure)
            os.dup2(screen, 2)
            said.seek(0)
            found = ERROR.search(error or said.read().decode(errors="replace"))
        return answer, found[0].strip() if found else ""


def _remove_replaced_parts(path: Path) -> None:
    """Removes parts whose blocks are also in another part of the partition, in the same or a newer state."""
    for table in path.rglob("format_version.txt"):
        parts = [
            (folder, found[1], *(int(number or 0) for number in found.groups()[1:]))
            for folder in table.parent.iterdir()
            if (found := PART.fullmatch(folder.name))
        ]
        for folder, partition, first, last, level, mutation in parts:
            if any(
                other[0] != folder
                and other[1] == partition
                and other[2] <= first
                and last <= other[3]
                and level <= other[4]
                and mutation <= other[5]
                for other in parts
            ):
                shutil.rmtree(folder)


def _library() -> Any:
    """chDB's library without its package, which runs a statement as it is imported."""
    found = importlib.util.find_spec("chdb")
    assert found
    assert found.origin
    folder = Path(found.origin).parent
    os.chdir(folder)
    spec = importlib.util.spec_from_file_location("_chdb", next(folder.glob("_chdb.*.so")))
    assert spec
    assert spec.loader
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    return library


def _bound(statement: bytes, settings: dict[str, str]) -> bytes:
    """The statement with its parameters put in, because 22.12 has no SET param_. Takes them out of the settings."""

    def value(found: re.Match[bytes]) -> bytes:
        escaped = _bytes(given[f"param_{found[1].decode()}"]).replace(b"'", b"\\'")  # TSV's escapes are also SQL's
        return b"CAST('%b', '%b')" % (escaped, found[2])

    given = {name: settings.pop(name) for name in list(settings) if name.startswith("param_")}
    return PARAMETER.sub(value, statement) if given else statement


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _quoted(value: str) -> bytes:
    return b"'" + _bytes(value).replace(b"\\", b"\\\\").replace(b"'", b"\\'") + b"'"


class Server(ForkingMixIn, HTTPServer):
    request_queue_size = 128


def main(path: Path) -> None:
    """Prints its port, and serves until its standard input ends."""
    server = Server(("127.0.0.1", 0), partial(Front, engine=Engine(path), path=path))
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
