"""Migrations on real processes of replicas and ZooKeeper, with a live application on the other replica.

Something breaks in each: the run finishes, or stops clearly and the next one finishes. Then every replica holds what
Postgres says, id by id, and nobody was ever given a wrong person. `make test-cluster` runs them.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import System
from pdi2.core.plan import cluster_checks as checks

from demo import cluster, cluster_engine, traffic
from demo import postgres as embedded
from demo.cluster_zookeeper import ZooKeeper
from demo.schema import Table
from demo.seed import seed

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("airflow_metadata", "soon")]

CONF = {"settle_seconds": 6, "in_flight_seconds": 3, "read_cache_seconds": 1, "stop_old_writes": False}
ROWS, TEAMS = 120_000, 5
COPYING = "SELECT count(*) FROM pdi2_migration.team WHERE status IN ('copying', 'copied', 'verified')"
VERIFIED = "SELECT count(*) FROM pdi2_migration.team WHERE status = 'verified'"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdi2.edge.retries.FIRST_DELAY", timedelta(seconds=1))
    monkeypatch.setattr("pdi2.edge.connections.PUT_OFF_SECONDS", 2)
    monkeypatch.setattr("pdi2.core.cluster.pressure.WAIT_IN_SLOT_SECONDS", 10)


@dataclass(kw_only=True)
class ClusterSystem(System):
    replicas: list[cluster.Replica]
    zookeeper: ZooKeeper

    def lead_to(self, replica: cluster.Replica, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = replica.address
        monkeypatch.setenv("AIRFLOW_CONN_POSTHOG_CLICKHOUSE", json.dumps(replica.airflow_connection("posthog")))

    def wrong_on(self, replica: cluster.Replica) -> dict[int, set[str]]:
        """By team, the ids for which this replica's new table gives its readers another answer than Postgres."""
        with replica.connect(database="posthog") as client:
            client.command(f"SYSTEM SYNC REPLICA {Table.NEW}")
            return System(self.postgres, client, {}, "posthog", "").disagreements()


@contextmanager
def system_on(
    directory: Path,
    postgres: embedded.Postgres,
    monkeypatch: pytest.MonkeyPatch,
    database: str,
    count: int,
    **more: Any,
) -> Iterator[ClusterSystem]:
    postgres.create_database(database, template="posthog_template")
    with cluster.running(directory, count, **more) as replicas, postgres.connect(database) as connection:
        monkeypatch.setenv("AIRFLOW_CONN_POSTHOG_POSTGRES", json.dumps(postgres.airflow_connection(database)))
        first, uri = replicas[0], postgres.uri(database)
        client = first.connect(database="posthog")
        assert first.zookeeper
        system = ClusterSystem(connection, client, {}, "posthog", uri, replicas=replicas, zookeeper=first.zookeeper)
        system.lead_to(first, monkeypatch)
        yield system
        for opened in system.opened:
            opened.close()


@pytest.fixture
def system(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    postgres_server: embedded.Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[ClusterSystem]:
    """Two replicas, or as many as the test says."""
    if reason := cluster_engine.unknown():
        pytest.skip(f"{request.node.name} needs replicas: {reason}")
    database = f"cluster_{time.time_ns()}"
    with system_on(tmp_path, postgres_server, monkeypatch, database, getattr(request, "param", 2)) as system:
        seed(system.postgres, system.clickhouse, rows=ROWS, teams=TEAMS)
        for replica in system.replicas[1:]:
            with replica.connect(database="posthog") as client:
                for table in Table:
                    client.command(f"SYSTEM SYNC REPLICA {table}")
        yield system


def once(holds: Callable[[], Any], what: Callable[[], Any]) -> threading.Thread:
    """Does `what` in its own thread, as soon as the condition holds."""

    def watch() -> None:
        while not holds():
            time.sleep(0.05)
        what()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def reached(system: ClusterSystem, query: str) -> Callable[[], bool]:
    def look() -> bool:
        with psycopg.connect(system.uri) as connection:
            try:
                [[found]] = connection.execute(query.encode()).fetchall()
            except psycopg.errors.UndefinedTable:  # there is no ledger yet
                return False
            return bool(found)

    return look


def freeze_keeper(system: ClusterSystem) -> None:
    """Freezes Keeper for longer than its sessions last."""
    system.zookeeper.freeze()
    time.sleep(25)
    system.zookeeper.thaw()


def flicker_keeper(system: ClusterSystem) -> None:
    """Sessions end and begin again, several times."""
    for _ in range(3):
        system.zookeeper.freeze()
        time.sleep(11)
        system.zookeeper.thaw()
        time.sleep(4)


def kill_other(system: ClusterSystem) -> None:
    system.replicas[1].kill()
    time.sleep(25)
    system.replicas[1].start()


def kill_own(system: ClusterSystem) -> None:
    system.replicas[0].kill()
    time.sleep(8)
    system.replicas[0].start()


def freeze_other(system: ClusterSystem) -> None:
    system.replicas[1].freeze()
    time.sleep(20)
    system.replicas[1].thaw()


def refuse_fetches(system: ClusterSystem) -> None:
    system.replicas[0].exchange(refuse=True)
    time.sleep(30)
    system.replicas[0].exchange(refuse=False)


@contextmanager
def application(system: ClusterSystem, replica: cluster.Replica, database: str) -> Iterator[traffic.Running]:
    """Writes and reads on that replica, which fetches with a delay; the database `front` has Distributed tables."""
    with replica.connect() as client:
        client.command("CREATE DATABASE front")
        for table in Table:
            engine = f"Distributed('posthog', 'posthog', '{table}', rand())"
            client.command(f"CREATE TABLE front.{table} AS posthog.{table} ENGINE = {engine}")
    options = {"clickhouse_database": database, "rate": 20, "cache_seconds": 1, "flush_seconds": 0.5}
    with traffic.running(system.uri, replica.port, replica.password, **options) as live:
        yield live


def finished(system: ClusterSystem) -> None:
    assert system.status() == 2
    assert system.switches()["reads"] == "new"
    for replica in system.replicas:
        assert system.wrong_on(replica) == {}, replica.name


@pytest.mark.parametrize(
    ("mishap", "at"),
    [
        (freeze_keeper, COPYING),
        (flicker_keeper, COPYING),
        (kill_other, COPYING),
        (kill_own, COPYING),
        (kill_own, VERIFIED),
        (freeze_other, COPYING),
        (refuse_fetches, COPYING),
    ],
)
def test_a_migration_in_which_something_breaks_ends_right_on_both(
    system: ClusterSystem, mishap: Callable[[ClusterSystem], None], at: str
) -> None:
    thread = once(reached(system, at), lambda: mishap(system))
    run = system.run(**CONF)
    thread.join(60)
    if run.state != "success":
        run = system.run(**CONF)
    assert run.state == "success"
    finished(system)


@pytest.mark.parametrize("database", ["posthog", "front"])
def test_a_live_application_on_the_other_replica_reads_nothing_wrong(system: ClusterSystem, database: str) -> None:
    system.replicas[0].exchange(delay=1.0)
    with application(system, system.replicas[1], database) as live:
        thread = once(reached(system, COPYING), lambda: kill_own(system))
        run = system.run(**CONF)
        thread.join(60)
        if run.state != "success":
            run = system.run(**CONF)
        assert run.state == "success"
        summary = live.end()
    assert (summary["wrong"], summary["undelivered"], summary["sound"]) == (0, 0, True)
    finished(system)


@pytest.mark.parametrize("system", [3], indirect=True)
def test_the_third_of_three_that_cannot_fetch_holds_the_switch_up(system: ClusterSystem) -> None:
    third = system.replicas[2]
    with third.connect(database="posthog") as client:
        client.command(f"SYSTEM STOP FETCHES {Table.NEW}")
        waits = "SELECT count(*) FROM pdi2_migration.event WHERE what = 'switch_waits'"
        thread = once(reached(system, waits), lambda: client.command(f"SYSTEM START FETCHES {Table.NEW}"))
        run = system.run(**CONF)
        thread.join(10)
    assert run.state == "success"
    assert "r3-01" in system.value(
        "SELECT detail->>'reason' FROM pdi2_migration.event WHERE what = 'switch_waits' LIMIT 1"
    )
    finished(system)


def test_a_run_may_go_on_through_the_other_replica(system: ClusterSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first replica is gone for good, so what was verified on it is verified again."""
    first, second = system.replicas
    team = system.value("SELECT min(team_id) FROM posthog_persondistinctid")
    assert system.run(**CONF, team_ids=[team]).state == "success"
    first.kill()
    system.lead_to(second, monkeypatch)
    with second.connect(database="posthog") as client:
        while client.query("SELECT max(active_replicas) FROM system.replicas").result_rows != [(1,)]:
            time.sleep(0.5)
    assert system.run(**CONF).state != "success", "an insert needs both: preflight says so"
    with second.connect(database="posthog") as client:
        for table in Table:
            client.command(f"SYSTEM DROP REPLICA 'r1-01' FROM TABLE {table}")
    assert system.run(**CONF).state == "success"
    system.replicas.remove(first)
    finished(system)


def test_a_replica_that_keeper_lost_is_reported_with_its_remedy(system: ClusterSystem) -> None:
    zookeeper, first = system.zookeeper, system.replicas[0]
    zookeeper.kill()
    shutil.rmtree(zookeeper.directory / "data")
    zookeeper.start()
    first.kill()
    first.start()
    problems = checks.problems(system.warehouse())
    assert len(problems) == 2
    assert all("SYSTEM RESTORE REPLICA person_distinct_id" in problem for problem in problems)
    for table in Table:
        system.clickhouse.command(f"SYSTEM RESTORE REPLICA {table}")
    assert checks.problems(system.warehouse()) == []


def test_several_shards_are_refused(
    tmp_path: Path, postgres_server: embedded.Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = f"sharded_{time.time_ns()}"
    with system_on(tmp_path, postgres_server, monkeypatch, database, 2, sharded=True) as system:
        for table in Table:
            system.clickhouse.command(
                f"CREATE TABLE all_of_{table} AS {table} ENGINE = Distributed('posthog', 'posthog', '{table}', rand())"
            )
        [problem] = checks.problems(system.warehouse())
        assert "one of 2 shards: the Distributed table all_of_person_distinct_id on the cluster posthog" in problem
        assert system.run(**CONF).state == "failed"
        assert system.switches() == {"reads": "old", "writes": "old"}
