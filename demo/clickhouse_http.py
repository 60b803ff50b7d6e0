"""ClickHouse's HTTP protocol for the chDB of one process, on 127.0.0.1: a small, plain server for demo and tests.

clickhouse-connect and Airflow's ClickHouseHook cannot tell it from a real server. A careful reader should know:

- Peak memory (`memory_usage` in X-ClickHouse-Summary) is sampled while a statement runs, so it is a lower bound, and
  missing for short statements. system.query_log has it exactly, after `SYSTEM FLUSH LOGS`.
- Request bodies are held in memory, and so are answers in formats that cannot be streamed (not in STREAMED).
- Answers are never compressed, GET is not read-only. Missing: external tables, ClickHouse's own compression,
  `FROM input()`, progress headers, access management.
- Data survives kill -9 as in ClickHouse: what was acknowledged is in the kernel, though not yet on the disk.
- `max_memory_usage_for_user` stops working while any statement without it runs, such as our samples.

If it is started with a faults token, it misbehaves on request: `POST /faults`, with that Bearer token, takes a list of
`Fault`s as JSON. The first fault that matches a statement and has shots left acts. `GET /faults` says what each did.
"""

import asyncio
import hmac
import json
import os
import re
import secrets
import tempfile
import time
import uuid
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any

import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from demo.clickhouse_engine import HEAD, Engine, Query, ServerError
from demo.clickhouse_request import pairs, read_query
from demo.faults import Fault

STATUS = {194: 401, 131: 413, 159: 408, 48: 501, 76: 503, 209: 503, 439: 503}
STATUS |= dict.fromkeys((192, 193, 497, 516), 403)
STATUS |= dict.fromkeys((46, 47, 50, 56, 60, 63, 73, 81, 115, 511), 404)
STATUS |= dict.fromkeys((6, 8, 15, 25, 26, 27, 36, 38, 41, 43, 44, 53, 62, 72, 117, 321, 457), 400)
"""The HTTP status for each of ClickHouse's error codes; 500 for all others."""

SAMPLE_SECONDS = 0.05
HOLD_SECONDS = 0.02


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
    """The HTTP side: reads a request into a Query, lets the engine run it, and writes the answer."""

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
        url = pairs(request.scope["query_string"].decode("latin-1"))
        headers = {
            "X-ClickHouse-Query-Id": url.get("query_id") or str(uuid.uuid4()),
            "X-ClickHouse-Server-Display-Name": "chDB",
            "X-ClickHouse-Timezone": self.engine.timezone,
        }
        try:
            self.authenticate(request, url)
            if request.method == "GET" and not url:
                return PlainTextResponse("Ok.\n")
            query = await read_query(request, url, headers["X-ClickHouse-Query-Id"])
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
                await self.hold(fault)
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

    async def hold(self, fault: Fault) -> None:
        deadline = time.monotonic() + fault.seconds
        while time.monotonic() < deadline and any(one is fault for one in self.faults):
            await asyncio.sleep(min(HOLD_SECONDS, fault.seconds))

    async def attended(self, request: Request, query: Query, work: Callable[[], Any]) -> Any:
        """Do the work in a thread. If the client leaves, a SELECT is cancelled if its settings ask for that."""
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
        """The body. An error in its middle is written into it, in the form that clients look for."""
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


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _begun(pieces: Iterator[bytes]) -> Iterable[bytes]:
    """The answer of a statement that was run until its first output, or to its end."""
    first = next(filter(None, pieces), b"")
    return chain((first,), pieces) if first else ()


def _spooled(pieces: Iterator[bytes]) -> Iterable[bytes]:
    """The answer of a statement that was run to its end, kept in memory if it is small and on disk if not."""
    whole = tempfile.SpooledTemporaryFile(1 << 24)  # noqa: SIM115
    whole.writelines(pieces)
    size = whole.tell()
    whole.seek(0)
    return iter(partial(whole.read, 1 << 20), b"") if size else ()
