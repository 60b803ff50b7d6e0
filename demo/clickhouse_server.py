"""The demo ClickHouse server in its own process, which can be stopped, killed, restarted and given faults."""

import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver.client import Client

from demo.alone import free_port
from demo.clickhouse_engine import Engine
from demo.clickhouse_http import Front

STARTED_WITHIN_SECONDS = 120


def serve(
    path: str,
    port: int,
    user: str,
    password: str,
    faults_token: str,
    max_memory: int,
    replica: dict[str, Any] | None = None,
) -> None:
    """Serve the engine in `path` until SIGINT or SIGTERM; `max_memory` is the server's limit in bytes.

    With `replica`, which has the arguments of demo.cluster.engine, it is a replica in a cluster.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    if replica:
        from demo import cluster

        engine = cluster.engine(Path(path), max_memory, **replica)
    else:
        engine = Engine(Path(path), max_memory)
    try:
        with suppress(KeyboardInterrupt):
            Front(engine, port, user, password, faults_token).http.run()
    finally:
        if replica:
            os._exit(0)  # an engine with replicated tables may hang as it closes
        engine.close()


def run(path: Path, port: int) -> int:
    """`serve` for scripts outside the project, which rely on `python -m demo clickhouse --path DIR --port N`."""
    serve(str(path), port, "default", os.environ.get("CLICKHOUSE_PASSWORD", ""), faults_token="", max_memory=0)
    return 0


def serve_parent() -> None:
    """`serve` with options from standard input, until the process at its other end is gone."""
    options = json.loads(sys.stdin.readline())

    def outlive_nobody() -> None:
        os.read(sys.stdin.fileno(), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=outlive_nobody, daemon=True).start()
    serve(**options)


@dataclass
class Server:
    """`serve` in its own process, which can be stopped, killed, restarted in the same place and given faults."""

    path: Path
    port: int = 0
    user: str = "default"
    password: str = field(default_factory=secrets.token_urlsafe, repr=False)
    """Of this machine's other users, none may read or change what is in it."""
    faults_token: str = ""
    max_memory: int = 0
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def start(self) -> None:
        self.port = self.port or free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from demo.clickhouse_server import serve_parent; serve_parent()"],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # an engine with a log prints where it is
            text=True,
            start_new_session=True,
        )
        assert self.process.stdin
        print(json.dumps(self.options()), file=self.process.stdin, flush=True)  # not in arguments: all can see those
        deadline = time.monotonic() + STARTED_WITHIN_SECONDS
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"no demo ClickHouse server on port {self.port}: its output, above, says why")
            time.sleep(0.02)

    def options(self) -> dict[str, Any]:
        """The options of `serve`."""
        names = ("port", "user", "password", "faults_token", "max_memory")
        return {name: getattr(self, name) for name in names} | {"path": str(self.path.resolve())}

    @property
    def address(self) -> dict[str, Any]:
        """What a client of the official library needs to reach it."""
        return {"host": "127.0.0.1", "port": self.port, "username": self.user, "password": self.password}

    def connect(self, **options: Any) -> Client:
        """A client of the official library; `options` are its own."""
        return clickhouse_connect.get_client(**self.address, **options)

    def airflow_connection(self, database: str) -> dict[str, Any]:
        """Airflow's connection to `database`, ready for json.dumps."""
        address = {"conn_type": "clickhouse", "host": "127.0.0.1", "port": self.port, "schema": database}
        return {**address, "login": self.user, "password": self.password}

    def answers(self) -> bool:
        try:
            return self.request("GET", "/ping") == b"Ok.\n"
        except OSError:
            return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, and kill it if it does not end soon. Returns its exit code."""
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
        """Replace all faults by these; each has the fields of Fault."""
        self.request("POST", "/faults", json.dumps(faults))

    def faults(self) -> list[dict[str, Any]]:
        """The faults, with how often each `matched` and `fired`."""
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
    """Start a Server, wait until it answers, and stop it at the end."""
    server = Server(path, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
