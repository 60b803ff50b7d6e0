"""Real engines for every test: one embedded Postgres, one chDB, and a fresh pair of databases for each story."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clickhouse_connect
import psycopg
import pytest
from clickhouse_connect.driver.client import Client

ROOT = Path(__file__).parents[1]
AIRFLOW_HOME = tempfile.TemporaryDirectory(prefix="pdi2-airflow-")
os.environ |= {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "AIRFLOW_HOME": AIRFLOW_HOME.name,
    "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
    "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
}

from pdi2.core.clickhouse import Warehouse  # noqa: E402
from pdi2.core.ledger import Ledger, Team  # noqa: E402
from pdi2.core.settings import Settings  # noqa: E402

from demo import postgres as embedded  # noqa: E402
from demo import reader, schema  # noqa: E402
from demo.switches import Switches as ApplicationSwitches  # noqa: E402
from demo.writer import Writer  # noqa: E402

DATABASE_NUMBERS = itertools.count(1)
FILL = "fill_person_distinct_id2"
ROLLBACK = "rollback_person_distinct_id2"
NOTHING_TO_WAIT_FOR = {"settle_seconds": 0, "read_cache_seconds": 0}


@dataclass
class System:
    """A PostHog-shaped pair of databases and what tests do with it."""

    postgres: psycopg.Connection
    clickhouse: Client
    path: str
    database: str
    uri: str
    opened: list[Any] = field(default_factory=list)

    def client(self) -> Client:
        return clickhouse_connect.get_client(interface="chdb", path=self.path, database=self.database)

    def warehouse(self, purpose: str = "test", max_memory_usage: int = Settings().max_memory_usage) -> Warehouse:
        warehouse = Warehouse(self.client, purpose, max_memory_usage)
        self.opened.append(warehouse)
        return warehouse

    def ledger(self, run: str = "a run") -> Ledger:
        connection = psycopg.connect(self.uri, autocommit=True)
        self.opened.append(connection)
        return Ledger(connection, run, "a test")

    def writer(self, **options: Any) -> Writer:
        return Writer(self.postgres, self.clickhouse, ApplicationSwitches(self.postgres, cache_seconds=0), **options)

    def run(self, dag_id: str = FILL, **conf: Any) -> Any:
        """Runs the DAG through Airflow in this process; the finished run, whatever its state."""
        from airflow.dag_processing.dagbag import DagBag

        bag = DagBag(ROOT / "dags")
        assert not bag.import_errors
        dag = bag.dags[dag_id]
        if dag_id == FILL:
            conf = NOTHING_TO_WAIT_FOR | conf
        return dag.test(run_conf=conf)

    def teams(self) -> dict[int, Team]:
        return {team.team_id: team for team in self.ledger().teams()}

    def status(self) -> int:
        return self.value("SELECT status FROM posthog_asyncmigration")

    def switches(self) -> dict[str, str]:
        rows = self.postgres.execute("SELECT key, raw_value FROM posthog_instancesetting").fetchall()
        return {key.rpartition("_")[2].lower(): json.loads(value) for key, value in rows}

    def value(self, query: str) -> Any:
        row = self.postgres.execute(query.encode()).fetchone()
        return row[0] if row else None

    def disagreements(self, table: schema.Table = schema.Table.NEW) -> dict[int, set[str]]:
        """By team, the ids for which the table's reader and Postgres disagree."""
        found = {}
        teams = {team for (team,) in self.postgres.execute("SELECT team_id FROM posthog_persondistinctid")}
        teams |= {row[0] for row in self.clickhouse.query(f"SELECT DISTINCT team_id FROM {table}").result_rows}
        for team_id in teams:
            seen = reader.team_in(self.clickhouse, table, team_id)
            truth = reader.truth_of(self.postgres, team_id)
            if ids := {id_ for id_ in seen.keys() | truth.keys() if seen.get(id_) != truth.get(id_)}:
                found[team_id] = ids
        return found


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Postgres]:
    with embedded.running(tmp_path_factory.mktemp("postgres") / "data") as server:
        server.create_database("posthog_template")
        with server.connect("posthog_template") as connection:
            schema.create_postgres(connection)
        yield server


@pytest.fixture(scope="session")
def clickhouse_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One engine a process: an open client keeps it up between the tests."""
    path = str(tmp_path_factory.mktemp("clickhouse"))
    with clickhouse_connect.get_client(interface="chdb", path=path):
        yield path


@pytest.fixture(scope="session")
def airflow_metadata() -> None:
    subprocess.run(["airflow", "db", "migrate"], check=True)


@pytest.fixture
def system(
    postgres_server: embedded.Postgres, clickhouse_path: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[System]:
    """Empty tables of the application, in databases of their own, and Airflow's two connections to them."""
    database = f"story_{next(DATABASE_NUMBERS)}"
    postgres_server.create_database(database, template="posthog_template")
    with clickhouse_connect.get_client(interface="chdb", path=clickhouse_path) as client:
        client.command(f"CREATE DATABASE {database}")
    clickhouse = clickhouse_connect.get_client(interface="chdb", path=clickhouse_path, database=database)
    schema.create_clickhouse(clickhouse)
    clickhouse_connection = {
        "conn_type": "clickhouse",
        "schema": database,
        "extra": {"client_kwargs": {"interface": "chdb", "path": clickhouse_path}},
    }
    monkeypatch.setenv("AIRFLOW_CONN_POSTHOG_CLICKHOUSE", json.dumps(clickhouse_connection))
    monkeypatch.setenv("AIRFLOW_CONN_POSTHOG_POSTGRES", json.dumps(postgres_server.airflow_connection(database)))
    with postgres_server.connect(database) as connection:
        system = System(connection, clickhouse, clickhouse_path, database, postgres_server.uri(database))
        yield system
        for opened in system.opened:
            opened.close()
    clickhouse.command(f"DROP DATABASE {database} SYNC")
    clickhouse.close()
