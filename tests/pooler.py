"""A real PgBouncer in front of a Postgres server: Debian's package, which `make test-pooler` installs."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from demo.alone import free_port
from demo.postgres import Postgres

PROGRAM = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
STARTED_WITHIN_SECONDS = 10


@contextmanager
def running(server: Postgres, mode: str, **options: object) -> Iterator[int]:
    """The port on loopback of a pooler in the mode "session", "transaction" or "statement", which trusts everybody."""
    assert PROGRAM, "there is no pgbouncer: make test-pooler installs it"
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": mode,
            "admin_users": "postgres",
            **options,
        }
        written = "\n".join(f"{name} = {value}" for name, value in settings.items())
        configuration = Path(directory) / "pgbouncer.ini"
        configuration.write_text(f"[databases]\n* = host={server.host} user=postgres\n[pgbouncer]\n{written}\n")
        Path(directory).chmod(0o755)
        command = [PROGRAM, "--quiet", str(configuration)]
        user = Path(server.host).owner() if os.geteuid() == 0 else None  # it refuses root, and must reach the socket
        with subprocess.Popen(command, user=user) as process:
            try:
                _wait(port)
                yield port
            finally:
                process.kill()


def _wait(port: int) -> None:
    deadline = time.monotonic() + STARTED_WITHIN_SECONDS
    while True:
        try:
            with psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="pgbouncer", autocommit=True):
                return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
