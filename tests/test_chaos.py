"""Migrations under live traffic in which something breaks: each finishes, or stops clearly and the next one finishes.

Nobody is ever given a wrong person, and at the end the new table holds what Postgres says, id by id.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from conftest import FILL, ROLLBACK, LiveSystem
from stories import ALICE, BOB, CAROL, insert_new, insert_truth, until

from demo import traffic
from demo.seed import seed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("airflow_metadata", "retries_soon")]
each_of_them = pytest.mark.chaos

CONF = {"settle_seconds": 6, "in_flight_seconds": 3, "read_cache_seconds": 1}
RATE = 40
HELD_SECONDS = 300

COPY = r"INSERT INTO person_distinct_id2\s+\("
COUNT = r"version < -1"
PROOF = "SHA256"
REPAIR = "DELETE FROM person_distinct_id2"
BASELINE = "touched AS"
TEAMS = "AS old_rows"


@pytest.fixture
def retries_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdi2.edge.retries.FIRST_DELAY", timedelta(seconds=0.5))


@pytest.fixture
def seeded(live: LiveSystem) -> LiveSystem:
    seed(live.postgres, live.clickhouse, rows=6_000, teams=3)
    return live


@contextmanager
def application(system: LiveSystem, *habits: str) -> Iterator[traffic.Running]:
    """Live traffic that is already flowing."""
    with traffic.running(
        system.uri, system.server.port, system.server.password, clickhouse_database=system.database,
        rate=RATE, writers=1, also=list(habits), flush_seconds=0.2, cache_seconds=0.2,
    ) as live:  # fmt: skip
        until(lambda: system.value("SELECT count(*) > 20 FROM posthog_persondistinctid WHERE distinct_id ^@ 'live'"))
        yield live


@contextmanager
def meanwhile(happens: Callable[[], object]) -> Iterator[None]:
    """Runs this in a thread beside the run. If it fails, the story fails."""
    with ThreadPoolExecutor(1) as pool:
        happening = pool.submit(happens)
        yield
        happening.result()


def misbehave(system: LiveSystem, match: str, times: int = 1, **fault: Any) -> None:
    """Injects a fault, and waits until it has hit `times` statements."""
    system.server.inject({"match": match, "times": times, **fault})
    until(lambda: system.server.faults()[0]["fired"] == times)


def die(system: LiveSystem, match: str) -> None:
    system.server.inject({"match": match, "action": "die"})
    assert system.server.process
    system.server.process.wait(HELD_SECONDS)
    system.server.start()


@contextmanager
def held_in_clickhouse(system: LiveSystem, match: str) -> Iterator[Callable[[], bool]]:
    """Holds matching statements until the block ends. Yields a function that says whether one is held."""
    system.server.inject({"match": match, "action": "delay", "seconds": HELD_SECONDS})
    try:
        yield lambda: bool(system.server.faults()[0]["fired"])
    finally:
        system.server.inject()


@contextmanager
def held_in_postgres(system: LiveSystem, table: str, what: str = "") -> Iterator[Callable[[], bool]]:
    """Holds whoever adds such a line to the ledger until the block ends. Yields a function that says if somebody is."""
    condition = f"WHEN (NEW.what = '{what}')" if what else ""
    with psycopg.connect(system.uri, autocommit=True) as holder:
        holder.execute(
            f"""
            CREATE OR REPLACE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NEW; END $$;
            CREATE OR REPLACE TRIGGER hold BEFORE INSERT ON pdi2_migration.{table}
            FOR EACH ROW {condition} EXECUTE FUNCTION hold();
            SELECT pg_advisory_lock(4711)
            """
        )
        waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted"
        yield lambda: not holder.closed and holder.execute(waiting).fetchone() is not None


def restart_postgres(system: LiveSystem, hold: Callable[[LiveSystem], Any]) -> None:
    """Restarts Postgres while a statement is held."""
    with hold(system) as reached:
        until(reached)
        system.postgres_server.stop()
        system.postgres_server.start()


def told(system: LiveSystem) -> list[Any]:
    """Why tasks failed."""
    with psycopg.connect(system.uri) as postgres:
        return postgres.execute("SELECT at, detail FROM pdi2_migration.event WHERE what = 'task_failed'").fetchall()


def migrated(system: LiveSystem, live: traffic.Running, switches: int = 1) -> None:
    """Checks that everything ended as it should."""
    summary = live.end()
    with psycopg.connect(system.uri, autocommit=True) as system.postgres:
        assert system.status() == 2
        assert system.switches() == {"reads": "new", "writes": "new"}
        assert {team.status for team in system.teams().values()} == {"verified"}
        assert system.value("SELECT count(*) FROM pdi2_migration.event WHERE what = 'reads_switched'") == switches
        assert system.disagreements() == {}
    assert (summary["sound"], summary["wrong"], summary["undelivered"]) == (True, 0, 0), summary
    assert summary["reads of person_distinct_id"]
    assert summary["reads of person_distinct_id2"]


def planned(system: LiveSystem) -> None:
    until(lambda: system.value("SELECT to_regclass('pdi2_migration.team') IS NOT NULL"))
    until(lambda: system.value("SELECT 1 FROM pdi2_migration.event WHERE what = 'planned'"))


IN_THE_COPY = partial(held_in_clickhouse, match=COPY)
BEFORE_A_CHECKPOINT = partial(held_in_postgres, table="slice")
IN_THE_PROOF = partial(held_in_clickhouse, match=PROOF)
IN_THE_SWITCH = partial(held_in_postgres, table="event", what="reads_switched")

BREAKS: dict[str, list[Callable[[LiveSystem], object]]] = {
    "ClickHouse dies": [partial(die, match=statement) for statement in (COPY, COUNT, PROOF)],
    "Postgres restarts": [
        partial(restart_postgres, hold=hold) for hold in (IN_THE_COPY, BEFORE_A_CHECKPOINT, IN_THE_PROOF, IN_THE_SWITCH)
    ],
    "inserts are done, and their connections cut before the answer": [
        partial(misbehave, match=COPY, action="cut_after", times=2),
        partial(misbehave, match="INSERT INTO", action="cut_after", times=10),
    ],
    "ClickHouse says no": [
        partial(misbehave, match=COPY, action="error", code=252, times=2),
        partial(misbehave, match="", action="error", code=202, times=2),
        partial(misbehave, match=PROOF, action="error", code=159, times=2),
        partial(misbehave, match="", action="refuse", times=2),
    ],
    "ClickHouse is slow": [planned, partial(misbehave, match="", action="delay", seconds=0.2, times=200)],
}


def breaks(system: LiveSystem, happenings: list[Callable[[LiveSystem], object]]) -> None:
    for happening in happenings:
        happening(system)


@each_of_them
@pytest.mark.parametrize("happenings", BREAKS.values(), ids=BREAKS.keys())
def test_a_run_gets_past_a_fault(seeded: LiveSystem, happenings: list[Callable[[LiveSystem], object]]) -> None:
    with application(seeded) as live:
        with meanwhile(partial(breaks, seeded, happenings)):
            run = seeded.run(**CONF)
        assert run.state == "success", told(seeded)
        migrated(seeded, live)


def test_a_run_gets_past_several_faults_one_after_the_other(seeded: LiveSystem) -> None:
    """The essence of the stories above in a single story, which `make test` runs."""
    happenings = [
        partial(die, match=COPY),
        partial(misbehave, match=COPY, action="cut_after"),
        partial(restart_postgres, hold=IN_THE_SWITCH),
    ]
    with application(seeded, "clock:-300") as live:
        with meanwhile(partial(breaks, seeded, happenings)):
            run = seeded.run(**CONF)
        assert run.state == "success"
        migrated(seeded, live)


OF_TEAMS_BEFORE_THE_SWITCH = 3
"""Preflight, the plan and the certificate each run such a statement before the switch does."""

STOPS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "the disk is full during the copy": (
        {"match": COPY, "action": "error", "code": 243},
        ["slice of team", "243", "NOT_ENOUGH_SPACE", "reads stay on the old table", "trigger a new run"],
    ),
    "the disk is full during the proof": (
        {"match": PROOF, "action": "error", "code": 243},
        ["team", "243", "NOT_ENOUGH_SPACE", "reads stay on the old table", "trigger"],
    ),
    "the disk is full during the switch": (
        {"match": TEAMS, "action": "error", "code": 243, "skip": OF_TEAMS_BEFORE_THE_SWITCH},
        ["switch_reads was stopped", "243", "NOT_ENOUGH_SPACE", "reads stay as they are", "trigger the run again"],
    ),
    "even the smallest slice needs too much memory": (
        {"match": COPY, "action": "error", "code": 241},
        ["slice of team", "max_memory_usage", "reads stay on the old table", "Trigger the run again"],
    ),
}


@each_of_them
@pytest.mark.parametrize(("fault", "words"), STOPS.values(), ids=STOPS.keys())
def test_a_run_stops_clearly_and_the_next_one_finishes(
    seeded: LiveSystem, fault: dict[str, Any], words: list[str]
) -> None:
    with application(seeded) as live:
        seeded.server.inject({**fault, "times": 10_000})
        assert seeded.run(**CONF).state == "failed"
        stopped(seeded, *words)
        seeded.server.inject()
        assert seeded.run(**CONF).state == "success", told(seeded)
        migrated(seeded, live)


def stopped(system: LiveSystem, *words: str) -> None:
    """Checks that reads are where they were, and that PostHog's administrators see what happened, where, what is
    safe and what to do."""
    assert system.status() == 3
    assert system.switches()["reads"] == "old"
    description = system.value("SELECT description FROM posthog_asyncmigrationerror ORDER BY id DESC LIMIT 1")
    assert [told for told in words if told not in description] == [], description


@each_of_them
def test_a_writer_that_never_honours_the_dual_write_stops_it_until_it_is_gone(seeded: LiveSystem) -> None:
    with application(seeded, "deaf") as live:
        assert seeded.run(**CONF).state == "failed"
        stopped(seeded, "ignores the dual-write switch", "team", "Nothing was copied", "reads stay", "trigger")
        assert seeded.teams() == {}
        assert live.end()["wrong"] == 0
    with application(seeded) as live:
        assert seeded.run(**CONF).state == "success", told(seeded)
        migrated(seeded, live)


@each_of_them
@pytest.mark.parametrize(
    "habits",
    [("stale:4",), ("clock:-300",), ("clock:300",), ("clock:-120", "clock:240", "stale:3")],
    ids=["a stale switch", "a clock behind", "a clock ahead", "all of it"],
)
def test_a_writer_with_its_own_idea_of_time_does_no_harm(seeded: LiveSystem, habits: tuple[str, ...]) -> None:
    with application(seeded, *habits) as live:
        assert seeded.run(**CONF).state == "success", told(seeded)
        migrated(seeded, live)


@each_of_them
def test_a_rollback_under_traffic_and_the_next_migration_lose_nothing(seeded: LiveSystem) -> None:
    with application(seeded) as live:
        assert seeded.run(**CONF, stop_old_writes=False).state == "success"
        assert seeded.run(ROLLBACK).state == "success"
        assert seeded.status() == 4
        live.restart_reader()
        assert seeded.run(**CONF).state == "success", told(seeded)
        migrated(seeded, live, switches=2)


KILLED_AT: list[tuple[Callable[[LiveSystem], Any], dict[str, Any]]] = [
    (partial(held_in_clickhouse, match=BASELINE), {}),
    (partial(held_in_postgres, table="event", what="dual_writes_enabled"), {}),
    (partial(held_in_postgres, table="event", what="planned"), {}),
    (IN_THE_COPY, {}),
    (BEFORE_A_CHECKPOINT, {}),
    (IN_THE_PROOF, {}),
    (partial(held_in_clickhouse, match=REPAIR), {}),
    (partial(held_in_postgres, table="finding"), {}),
    (partial(held_in_postgres, table="event", what="certified"), {}),
    (IN_THE_SWITCH, {}),
    (partial(held_in_postgres, table="event", what="report"), {"stop_old_writes": False}),
    (partial(held_in_postgres, table="event", what="old_writes_stopped"), {}),
]
"""Where a run is killed, in its order: within a step or between its two writes. With the run's parameters."""


@each_of_them
def test_a_run_that_is_killed_at_every_step_is_finished_by_the_next_ones(seeded: LiveSystem) -> None:
    insert_truth(seeded, ALICE, 0, "contradicted")
    for person in (BOB, CAROL):
        insert_new(seeded, person, 0, "contradicted")
    seeded.ledger().create()
    with application(seeded) as live:
        for hold, conf in KILLED_AT:
            with hold(seeded) as reached:
                kill_a_run(reached, CONF | conf)
            assert seeded.switches()["reads"] == ("new" if seeded.status() == 2 else "old")
        assert seeded.run(**CONF).state == "success", told(seeded)
        migrated(seeded, live)


def kill_a_run(reached: Callable[[], bool], conf: dict[str, Any]) -> None:
    """Runs Airflow in its own processes, and kills them with SIGKILL as soon as the run has reached the right place."""
    command = ["airflow", "dags", "test", FILL, "--conf", json.dumps(conf)]
    run = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: reached() or run.poll() is not None)
        assert run.poll() is None, "the run ended before"
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
