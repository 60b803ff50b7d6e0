"""`make up`: everything on this machine, to try the migration in Airflow's own UI.

Ctrl-C, SIGTERM and a closed terminal end all of it.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from demo import airflow, cluster, traffic
from demo import postgres as embedded
from demo.alone import InUseError, anew
from demo.schema import create_postgres
from demo.seed import seed

READY_WITHIN_SECONDS = 600
STOPPED_WITHIN_SECONDS = 20
console = Console(highlight=False, soft_wrap=True)


def run(rows: int, teams: int, directory: Path, port: int, rate: float, zipf: bool, replicas: int) -> int:
    """Serve until KeyboardInterrupt; returns 1 if Airflow does not start or ends by itself.

    Raises InUseError, before anything is started, if the port or the directory is taken.
    """
    if is_taken(port):
        raise InUseError(f"Port {port} is in use, so nothing was started. Choose another: make up PORT={port + 1}")
    console.print(
        "Postgres, ClickHouse, a live application and Airflow: ready in about a minute. Ctrl-C ends all of it."
    )
    password = secrets.token_urlsafe(12)
    with (
        anew(directory),
        embedded.running(directory / "postgres") as postgres,
        cluster.servers(directory / "clickhouse", replicas) as servers,
    ):
        clickhouse = servers[0]
        console.print(f"Running: Postgres and {cluster.told(servers)}.")
        for database in ("airflow", "posthog"):
            postgres.create_database(database)
        with (
            postgres.connect("posthog") as application,
            clickhouse.connect() as client,
            console.status(f"Seeding about {rows:,} rows of {teams} teams"),
        ):
            create_postgres(application)
            seed(application, client, rows=rows, teams=teams, zipf=zipf)
        environment = airflow.environment(directory, postgres, clickhouse)
        environment |= standalone_environment(directory, postgres, password, port)
        log = directory / "airflow.log"
        with log.open("wb") as output:
            standalone = subprocess.Popen(
                ["airflow", "standalone"], env=environment, stdout=output, stderr=output, start_new_session=True
            )
            live = traffic.running(postgres.uri("posthog"), servers[-1].port, servers[-1].password, rate=rate)
            try:
                return _serve(standalone, live if rate else nullcontext(), rate, port, password, log)
            finally:
                stop(standalone)


def standalone_environment(directory: Path, postgres: embedded.Postgres, password: str, port: int) -> dict[str, str]:
    """The environment for Airflow on the embedded Postgres, with passwords made for this run.

    Its API listens on loopback alone. Its servers of logs listen on every interface, and answer signed tokens alone.
    """
    home = directory / "airflow"
    home.mkdir()
    passwords = home / "passwords.json"
    passwords.touch(mode=0o600)
    passwords.write_text(json.dumps({"admin": password, "viewer": secrets.token_urlsafe(12)}))
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as another:
        log_port, triggerer_log_port = one.getsockname()[1], another.getsockname()[1]
    return {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://postgres@/airflow?host={postgres.host}",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords.resolve()),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(log_port),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(triggerer_log_port),
    }


def _serve(
    standalone: subprocess.Popen[bytes],
    live: AbstractContextManager[Any],
    rate: float,
    port: int,
    password: str,
    log: Path,
) -> int:
    address = f"http://127.0.0.1:{port}"
    with console.status("Airflow is starting"):
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        while not is_healthy(address):
            if standalone.poll() is not None or time.monotonic() > deadline:
                console.print(f"[red]Airflow did not start; {log} says why")
                return 1
            time.sleep(0.5)
    with live:
        console.print(f"Airflow: {address}   user: admin   password: {password}")
        console.print("Next: open the DAG fill_person_distinct_id2 and trigger it, first with dry_run.")
        console.print("The page Migration in the navigation shows what happens.")
        if rate:
            console.print(f"Meanwhile the application makes {rate:g} changes per second, and reads what it wrote.")
        console.print('It follows a switch within 2 s, so {"settle_seconds": 12, "read_cache_seconds": 10} is enough.')
        console.print(f"Airflow's log is {log}. Ctrl-C stops everything.")
        standalone.wait()
    console.print(f"[red]Airflow ended by itself; {log} says why")
    return 1


def is_taken(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return True
    return False


def is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/api/v2/monitor/health", timeout=2) as response:
            health = json.load(response)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
    return all(health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor"))


def stop(standalone: subprocess.Popen[bytes]) -> None:
    """Send SIGINT to Airflow alone, which ends its own children, and kill what is left of its session."""
    standalone.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        standalone.wait(STOPPED_WITHIN_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(standalone.pid, signal.SIGKILL)
    standalone.wait()
