"""ClickHouse's HTTP protocol over one process's chDB, on 127.0.0.1: small, plain demo and test equipment.

clickhouse-connect and Airflow's ClickHouseHook cannot tell it from a server. A careful reader should know:

- Peak memory (`memory_usage` in X-ClickHouse-Summary) is sampled while a statement runs: a floor, absent for
  short statements. system.query_log has it exactly, after `SYSTEM FLUSH LOGS`.
- Request bodies are held in memory; so are answers in formats that cannot stream (not in STREAMED).
- Answers are never compressed, GET is not read-only. Missing: external tables, ClickHouse's own compression
  (`compress`, `decompress`), `FROM input()`, progress headers, access management.
- Data survives kill -9 as in ClickHouse: what was acknowledged is with the kernel, not yet on the disk.
- `max_memory_usage_for_user` is lifted by any statement beside it that lacks it, such as our samples.

Started with a faults token, it misbehaves on request: `POST /faults`, with that Bearer token, takes a list of
`Fault`s as JSON. The first to match a statement, with shots left, acts; `GET /faults` tells what each did.
"""

import asyncio
import hmac
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zlib
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import anyio.to_thread
import lz4.frame
import uvicorn
from backports import zstd
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from demo.clickhouse_engine import HEAD, Engine, Query, ServerError

STATUS = {194: 401, 131: 413, 159: 408, 48: 501, 76: 503, 209: 503, 439: 503}
STATUS |= dict.fromkeys((192, 193, 497, 516), 403)
STATUS |= dict.fromkeys((46, 47, 50, 56, 60, 63, 73, 81, 115, 511), 404)
STATUS |= dict.fromkeys((6, 8, 15, 25, 26, 27, 36, 38, 41, 43, 44, 53, 62, 72, 117, 321, 457), 400)
"""HTTP's status for ClickHouse's error code; 500 for every other."""

CODECS: dict[str, Callable[[], Any]] = {
    "lz4": lz4.frame.LZ4FrameDecompressor,
    "zstd": zstd.ZstdDecompressor,
    "gzip": partial(zlib.decompressobj, 31),
    "deflate": zlib.decompressobj,
}

NOT_SETTINGS = """
    query query_id database user password session_id session_timeout session_check default_format
    wait_end_of_query buffer_size quota_key role compress decompress client_protocol_version stacktrace
""".split()  # noqa: SIM905

SAMPLE_SECONDS = 0.05

FAULTS = {
    159: "Timeout exceeded: elapsed 60001 ms, maximum: 60000 ms",
    202: "Too many simultaneous queries. Maximum: 100",
    241: "Query memory limit exceeded: would use 1.01 GiB, maximum: 1.00 GiB",
    243: "Cannot reserve 1.00 MiB, not enough space",
    252: "Too many parts (3001). Merges are processing significantly slower than inserts",
}
"""ClickHouse's words. The server's limit is a 241 too: give "(total) memory limit exceeded" as `text`."""

ACTIONS = {
    "refuse": "HTTP 503, as from a proxy that finds no server; the statement does not run",
    "delay": "the statement runs `seconds` later",
    "cut_before": "the connection closes; the statement does not run",
    "cut_after": "the statement runs to its end, then the connection closes without an answer",
    "error": "ClickHouse's error `code` in the words of `text`; the statement does not run",
    "die": "the server is gone at once, as after kill -9; the statement does not run",
}


@dataclass
class Fault:
    """What happens to the statements that a regular expression finds, after `skip` of them, `times` times."""

    match: str
    action: str
    seconds: float = 0
    code: int = 0
    text: str = ""
    times: int = 1
    skip: int = 0
    matched: int = field(default=0, init=False)
    fired: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        re.compile(self.match)
        if self.action not in ACTIONS:
            raise ValueError(f"unknown action {self.action!r}: it is one of {', '.join(ACTIONS)}")
        if self.action == "error" and self.code not in FAULTS and not (self.code and self.text):
            raise ValueError(f"an error needs code and text, or one of the codes {sorted(FAULTS)}")
        self.text = self.text or FAULTS.get(self.code, "")

    def fires(self, statement: str) -> bool:
        if not re.search(self.match, statement, re.IGNORECASE | re.DOTALL):
            return False
        self.matched += 1
        fires = self.matched > self.skip and self.fired < self.times
        self.fired += fires
        return fires


class Cut(Exception):
    """The client gets no answer: its connection closes."""


class Answer(StreamingResponse):
    """An answer that stops its statement when the client stops reading."""

    def __init__(self, pieces: Iterator[bytes], body: Iterable[bytes], headers: dict[str, str]) -> None:
        super().__init__(body, headers=headers)
        self.pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientDisconnect):
                await super().__call__(scope, receive, send)
        finally:
            await run_in_threadpool(self.pieces.close)  # type: ignore[attr-defined]


class Front:
    """The HTTP side: reads a request into a Query, lets the engine run it, and writes what came of it."""

    def __init__(self, engine: Engine, port: int, user: str, password: str, faults_token: str) -> None:
        self.engine, self.user, self.password, self.faults_token = engine, user, password, faults_token
        self.faults: list[Fault] = []
        routes = [
            Route("/ping", lambda _: PlainTextResponse("Ok.\n")),
            Route("/", self.answer, methods=["GET", "POST"]),
        ]
        if faults_token:
            routes.append(Route("/faults", self.control, methods=["GET", "POST"]))
        app = Starlette(routes=routes, lifespan=self.lifespan)
        options: dict[str, Any] = {
            "log_level": "warning",
            "timeout_keep_alive": 600,
            "timeout_graceful_shutdown": 5,
        }
        self.http = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, **options))

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = 256
        sampler = asyncio.create_task(self.sample_memory())
        yield
        sampler.cancel()
        for query in list(self.engine.running.values()):
            self.engine.kill(query)

    async def sample_memory(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            if self.engine.running:
                with suppress(RuntimeError):  # the engine may have no memory left for this
                    await run_in_threadpool(self.engine.sample_memory)

    async def control(self, request: Request) -> Response:
        if not _same(request.headers.get("authorization", ""), f"Bearer {self.faults_token}"):
            return PlainTextResponse("Wrong token.\n", status_code=403)
        if request.method == "POST":
            try:
                self.faults = [Fault(**fault) for fault in await request.json()]
            except (TypeError, ValueError, re.error) as error:
                return PlainTextResponse(f"{error}\n", status_code=400)
        return JSONResponse([asdict(fault) for fault in self.faults])

    async def answer(self, request: Request) -> Response:
        url = _pairs(request.scope["query_string"].decode("latin-1"))
        headers = {
            "X-ClickHouse-Query-Id": url.get("query_id") or str(uuid.uuid4()),
            "X-ClickHouse-Server-Display-Name": "chDB",
            "X-ClickHouse-Timezone": self.engine.timezone,
        }
        try:
            self.authenticate(request, url)
            if request.method == "GET" and not url:
                return PlainTextResponse("Ok.\n")
            query = await _query(request, url, headers["X-ClickHouse-Query-Id"])
            return await self.run(request, query, url, headers)
        except ServerError as error:
            headers["X-ClickHouse-Exception-Code"] = str(error.code)
            if error.code == 194:
                headers["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
            return PlainTextResponse(self.words(error), STATUS.get(error.code, 500), headers)
        except Cut:
            for connection in list(self.http.server_state.connections):
                if getattr(connection, "client", None) == request.scope["client"]:
                    connection.transport.abort()
            await asyncio.sleep(0)
            return Response()
        except ClientDisconnect:
            return Response()

    def authenticate(self, request: Request, url: dict[str, str]) -> None:
        user, password = (
            request.headers.get(name, "").encode("latin-1").decode(errors="replace")
            for name in ("x-clickhouse-user", "x-clickhouse-key")
        )
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            with suppress(ValueError):
                user, _, password = b64decode(credentials).decode().partition(":")
        user, password = user or url.get("user") or "default", password or url.get("password", "")
        if not (_same(user, self.user) & _same(password, self.password)):
            code = 516 if scheme or password or user != "default" else 194
            raise ServerError(code, f"{user}: Authentication failed: password is incorrect, or no such user")

    async def run(self, request: Request, query: Query, url: dict[str, str], headers: dict[str, str]) -> Response:
        statement = query.statement[:HEAD].decode(errors="replace")
        fault = next((fault for fault in self.faults if fault.fires(statement)), None)
        match fault:
            case Fault(action="refuse"):
                return PlainTextResponse("Service unavailable\n", status_code=503)
            case Fault(action="cut_before"):
                raise Cut
            case Fault(action="error"):
                raise ServerError(fault.code, fault.text)
            case Fault(action="die"):
                os._exit(137)
            case Fault(action="delay"):
                await asyncio.sleep(fault.seconds)
        pieces = self.engine.run(query)
        wait = (fault and fault.action == "cut_after") or url.get("wait_end_of_query") == "1"
        body = await self.attended(request, query, partial(_spooled if wait else _begun, pieces))
        if fault and fault.action == "cut_after":
            raise Cut
        tag = secrets.token_hex(8)
        if query.read_only or body:
            headers["X-ClickHouse-Format"] = query.format
        headers["X-ClickHouse-Exception-Tag"] = tag
        headers["X-ClickHouse-Summary"] = json.dumps({k: str(v) for k, v in query.progress.items()})
        return Answer(pieces, self.unbroken(body, tag), headers)

    async def attended(self, request: Request, query: Query, work: Callable[[], Any]) -> Any:
        """Do the work in a thread. If the client leaves, a reading statement that wants so is cancelled."""
        task = asyncio.create_task(run_in_threadpool(work))
        gone = asyncio.create_task(_disconnected(request))
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        cancels = query.settings.get("cancel_http_readonly_queries_on_client_close") == "1"
        while cancels and not task.done():
            if query.read_only:
                await run_in_threadpool(self.engine.kill, query)
            await asyncio.wait({task}, timeout=SAMPLE_SECONDS)
        gone.cancel()
        return await task

    def unbroken(self, body: Iterable[bytes], tag: str) -> Iterator[bytes]:
        """The body; an error in its middle is written into it, in the way that clients look for it."""
        try:
            yield from body
        except ServerError as error:
            text = self.words(error)
            yield f"\r\n__exception__\r\n{tag}\r\n{text}{len(text)} {tag}\r\n__exception__\r\n".encode()

    def words(self, error: ServerError) -> str:
        name, version = self.engine.error_names.get(error.code, ""), self.engine.version
        return f"Code: {error.code}. DB::Exception: {error}. ({name}) (version {version} (chDB))\n"


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())


def _pairs(query_string: str) -> dict[str, str]:
    return dict(parse_qsl(query_string, keep_blank_values=True, errors="surrogateescape"))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _query(request: Request, url: dict[str, str], query_id: str) -> Query:
    if url.get("compress", "0") != "0" or url.get("decompress", "0") != "0":
        raise ServerError(48, "ClickHouse's own compression (compress, decompress) is not implemented")
    encoding = request.headers.get("content-encoding", "identity")
    body = b""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form(max_part_size=1 << 26) as form:
            if any(isinstance(value, UploadFile) for value in form.values()):
                raise ServerError(48, "External tables are not implemented")
            url |= {name: str(value) for name, value in form.items()}
    else:
        chunks = [chunk async for chunk in request.stream()]
        body = await run_in_threadpool(_decompressed, chunks, encoding)
    statement = b"\n".join(filter(None, (url.get("query", "").encode(errors="surrogateescape"), body)))
    return Query(
        statement,
        query_id,
        params={k[6:]: v for k, v in url.items() if k[:6] == "param_"},
        settings={k: v for k, v in url.items() if k not in NOT_SETTINGS and k[:6] != "param_"},
        database=url.get("database") or request.headers.get("x-clickhouse-database", ""),
        format=url.get("default_format") or request.headers.get("x-clickhouse-format") or "TabSeparated",
        session_id=url.get("session_id", ""),
        session_timeout=float(url.get("session_timeout", 60)),
        session_check=url.get("session_check") == "1",
    )


def _decompressed(chunks: list[bytes], encoding: str) -> bytes:
    """The body as it was before compression; clients send one compressed frame after the other."""
    if encoding == "identity":
        return b"".join(chunks)
    if encoding not in CODECS:
        raise ServerError(48, f"Unknown compression method: {encoding}")
    codec = CODECS[encoding]()
    whole = bytearray()
    try:
        for chunk in chunks:
            while chunk:
                if codec.eof:
                    codec = CODECS[encoding]()
                whole += codec.decompress(chunk)
                chunk = codec.unused_data if codec.eof else b""
    except (RuntimeError, zlib.error, zstd.ZstdError) as error:
        raise ServerError(117, f"Cannot decompress the body: {error}") from error
    if chunks != [b""] and not codec.eof:
        raise ServerError(117, "Cannot decompress the body: it ends too early")
    return bytes(whole)


def _begun(pieces: Iterator[bytes]) -> Iterable[bytes]:
    """The statement, run until it says something, or to its end."""
    first = next(filter(None, pieces), b"")
    return chain((first,), pieces) if first else ()


def _spooled(pieces: Iterator[bytes]) -> Iterable[bytes]:
    """The statement, run to its end, its answer in memory while small and on disk when not."""
    whole = tempfile.SpooledTemporaryFile(1 << 24)  # noqa: SIM115
    whole.writelines(pieces)
    size = whole.tell()
    whole.seek(0)
    return iter(partial(whole.read, 1 << 20), b"") if size else ()


def serve(
    path: Path | str,
    port: int,
    *,
    user: str = "default",
    password: str = "",
    faults_token: str = "",
    max_memory: int = 0,
) -> None:
    """Serve the engine in `path` until SIGINT or SIGTERM; `max_memory` is the server's limit in bytes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    engine = Engine(Path(path), max_memory)
    try:
        with suppress(KeyboardInterrupt):
            Front(engine, port, user, password, faults_token).http.run()
    finally:
        engine.close()


def serve_parent() -> None:
    """`serve` with options from standard input, until whoever holds its other end is gone."""
    options = json.loads(sys.stdin.readline())

    def outlive_nobody() -> None:
        os.read(sys.stdin.fileno(), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=outlive_nobody, daemon=True).start()
    serve(**options)


@dataclass
class Server:
    """`serve` in a process of its own: to be stopped, killed, started again where it was, given faults."""

    path: Path
    port: int = 0
    user: str = "default"
    password: str = ""
    faults_token: str = ""
    max_memory: int = 0
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def start(self) -> None:
        if not self.port:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
        names = ("port", "user", "password", "faults_token", "max_memory")
        options = {name: getattr(self, name) for name in names} | {"path": str(self.path.resolve())}
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from demo.clickhouse_server import serve_parent; serve_parent()"],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdin
        print(json.dumps(options), file=self.process.stdin, flush=True)  # arguments are for all to see
        deadline = time.monotonic() + 30
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"no demo ClickHouse server on port {self.port}: its output, above, says why")
            time.sleep(0.02)

    def answers(self) -> bool:
        try:
            return self.request("GET", "/ping") == b"Ok.\n"
        except OSError:
            return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, and insist after a while. Returns its exit code."""
        assert self.process
        self.process.send_signal(how)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            return self.kill()
        finally:
            if self.process.stdin:
                self.process.stdin.close()

    def kill(self) -> int:
        return self.stop(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def inject(self, *faults: dict[str, Any]) -> None:
        """Replace the faults by these (Fault's fields)."""
        self.request("POST", "/faults", json.dumps(faults))

    def faults(self) -> list[dict[str, Any]]:
        """The faults, each with how often it `matched` and `fired`."""
        return json.loads(self.request("GET", "/faults"))

    def request(self, method: str, path: str, body: str | None = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with closing(connection):
            connection.request(method, path, body, {"Authorization": f"Bearer {self.faults_token}"})
            response = connection.getresponse()
            answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: HTTP {response.status}: {answer.decode()}")
        return answer


@contextmanager
def running(path: Path, **options: Any) -> Iterator[Server]:
    """A Server that answers, stopped at the end."""
    server = Server(path, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
