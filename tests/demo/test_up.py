"""`make up` and its like as processes: they keep out of each other's way, and end completely however they are asked."""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import FILL, ROOT

from demo import postgres as embedded
from demo.alone import InUseError, anew, free_port

COMMAND = [sys.executable, "-m", "demo", "up", "--rows", "2000", "--teams", "3", "--rate", "5"]
HOLD = (
    "import sys, pathlib, demo.alone as a\nwith a.anew(pathlib.Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
)


def test_no_other_user_of_this_machine_connects_to_postgres(tmp_path: Path) -> None:
    """The server asks for no password, and its socket is in a directory for all where this path is too long for one."""
    directory = tmp_path / ("a long name" * 10)
    directory.mkdir()
    with embedded.running(directory / "postgres") as postgres:
        assert Path(postgres.host) != directory / "postgres"
        for _ in range(2):
            assert (Path(postgres.host) / ".s.PGSQL.5432").stat().st_mode & 0o077 == 0
            postgres.stop()
            postgres.start()
        with postgres.connect("postgres") as connection:
            assert connection.execute("SHOW unix_socket_permissions").fetchone() == ("0700",)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A directory with data in it, which another process holds."""
    directory = tmp_path / "held"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        other.stdout.readline()
        (directory / "data").write_text("of the first")
        yield directory
        other.kill()


def test_a_second_one_refuses_and_touches_nothing(held: Path) -> None:
    second = subprocess.run(
        [*COMMAND, "--directory", str(held), "--port", str(free_port())],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert second.returncode == 1
    assert f"{held} is in use by another process" in second.stderr
    assert (held / "data").read_text() == "of the first"


def test_a_directory_is_free_again_when_its_process_is_gone(held: Path) -> None:
    with pytest.raises(InUseError), anew(held):
        pass
    [other] = [child for child in psutil.Process().children() if str(held) in child.cmdline()]
    other.kill()
    other.wait()
    with anew(held):
        assert list(held.iterdir()) == []


def test_a_port_in_use_is_reported_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = subprocess.run(
            [*COMMAND, "--directory", str(tmp_path / "up"), "--port", str(port)],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert refused.returncode == 1
    assert f"Port {port} is in use, so nothing was started. Choose another: make up PORT=" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def of(directory: Path) -> dict[psutil.Process, list[str]]:
    """Every process that has the directory in its command line or environment, with its command line. Some of them
    end at any moment, and then have none."""
    found = {}
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if any(str(directory) in text for text in [*command, *process.environ().values()]):
                found[process] = command
        except psutil.Error:
            pass
    return found


@contextmanager
def in_a_terminal(directory: Path, port: int, *options: str) -> Iterator[tuple[psutil.Process, int]]:
    """Yields `make up` once its scheduler has begun, and the terminal. At the end, no process of it may be left."""
    mine, terminal = pty.openpty()
    command = [*COMMAND, "--directory", str(directory), "--port", str(port), *options]
    up = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command],
        cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal,
        preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGHUP)],
    )  # fmt: skip
    os.close(terminal)
    log = directory / "airflow.log"
    deadline = time.monotonic() + 300
    while not (log.exists() and "scheduler" in log.read_text()):
        assert up.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(of(directory)) > 3
    [itself] = [process for process, command in of(directory).items() if command[1:4] == ["-m", "demo", "up"]]
    yield itself, mine
    itself.wait(timeout=120)

    psutil.wait_procs(of(directory), timeout=60)
    assert of(directory) == {}
    up.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        pytest.param("terminated", marks=pytest.mark.chaos),
        "the terminal is closed",
        pytest.param("Ctrl-C", marks=pytest.mark.chaos),
    ],
)
def test_every_way_to_end_it_leaves_no_process(how: str, tmp_path: Path) -> None:
    with in_a_terminal(tmp_path / "up", free_port()) as (itself, terminal):
        match how:
            case "terminated":
                itself.send_signal(signal.SIGTERM)
            case "Ctrl-C":
                os.write(terminal, b"\x03")
            case _:
                os.close(terminal)
    if how != "the terminal is closed":
        os.close(terminal)


@pytest.mark.cluster
def test_two_replicas_are_migrated_from_the_ui_and_leave_no_process(tmp_path: Path) -> None:
    port = free_port()
    with in_a_terminal(tmp_path / "up", port, "--replicas", "2") as (_, terminal):
        said = b""
        while b"Ctrl-C stops everything" not in said:
            said += os.read(terminal, 4096)
        assert b"Running: Postgres and 2 replicas of ClickHouse" in said
        [password] = re.findall(rb"password: (\S+)", said)
        ui = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        token = ui.post("/auth/token", json={"username": "admin", "password": password.decode()}).json()
        ui.headers["Authorization"] = f"Bearer {token['access_token']}"
        while ui.get(f"/api/v2/dags/{FILL}").status_code == 404:
            time.sleep(1)
        runs = f"/api/v2/dags/{FILL}/dagRuns"
        conf = {"settle_seconds": 12, "read_cache_seconds": 10}  # the output must say enough to get this far
        run = ui.post(runs, json={"logical_date": None, "conf": conf}).raise_for_status().json()
        while (state := ui.get(f"{runs}/{run['dag_run_id']}").json()["state"]) not in ("success", "failed"):
            time.sleep(1)
        assert state == "success"
        os.write(terminal, b"\x03")
    os.close(terminal)
