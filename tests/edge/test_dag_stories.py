"""Whole runs of the DAGs, through Airflow, on the real engines."""

import contextlib
import json
import math
import multiprocessing
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import clickhouse_connect
import psycopg
import pytest
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from conftest import AUDIT, FILL, NOTHING_TO_WAIT_FOR, ROLLBACK, System
from pdi2.core.report.reporting import close_run
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.ownership import alone_with, held_by
from pdi2.core.state.settings import Settings
from pdi2.core.switch import proof
from pdi2.core.switch.rollback import roll_back
from sqlalchemy import select
from stories import (
    BOB,
    NO_WAIT,
    TEAM,
    accept,
    dump,
    earlier_run,
    insert_truth,
    migrate_together,
    refuse,
    stop_merges,
    two_ids_each,
    until,
    when_recorded,
)

from demo import postgres as embedded
from demo import schema
from demo.reader import truth_of
from demo.schema import Table
from demo.seed import Seeded, seed
from demo.switches import Switches
from demo.writer import Writer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("airflow_metadata")]

WITH_SETTINGS = pytest.mark.parametrize("release", ["1.34"], indirect=True)
WITH_AND_WITHOUT_SETTINGS = pytest.mark.parametrize("release", ["1.32", "1.34"], indirect=True)
LATE_TEAM = 999_999
OF_FACTS = ("enable_dual_writes", "team.copy", "team.verify", "certify", "report")
"""The tasks that return facts as a dict, of which Airflow would keep each entry by itself too."""


@pytest.fixture
def release(request: pytest.FixtureRequest) -> str:
    """A release without instance settings, as where the migration is due. Some stories ask for another."""
    return getattr(request, "param", "1.32")


@pytest.fixture
def seeded(system: System) -> Seeded:
    return seed(system.postgres, system.clickhouse, rows=14_000, teams=3)


@pytest.fixture
def retries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdi2.edge.retries.FIRST_DELAY", timedelta(0))


def switch(system: System) -> tuple[int, int]:
    """The migration row's status and progress."""
    return system.status(), system.value("SELECT progress FROM posthog_asyncmigration")


def stands(system: System, reads: str, writes: str) -> bool:
    """Whether the settings say so, if the release has them."""
    return system.switches() in ({}, {"reads": reads, "writes": writes})


def is_migrated(system: System) -> bool:
    return switch(system) == (2, 100) and stands(system, reads="new", writes="new")


def states(run: Any) -> dict[str, str]:
    """Airflow's state of each task; mapped tasks are named like `team.copy[0]`."""
    return {
        task.task_id + (f"[{task.map_index}]" if task.map_index >= 0 else ""): str(task.state)
        for task in run.get_task_instances()
    }


def red(run: Any) -> set[str]:
    """The tasks that failed themselves: a single task if there is a single cause."""
    return {task for task, state in states(run).items() if state == "failed"}


def tries(run: Any, task_id: str) -> list[int]:
    return [task.try_number for task in run.get_task_instances() if task.task_id == task_id]


def slices(system: System) -> dict[tuple[int, bytes], Any]:
    """When each slice was finished, by team and lower end."""
    rows = system.postgres.execute("SELECT team_id, lower, finished_at FROM pdi2_migration.slice").fetchall()
    return {(team_id, lower): finished_at for team_id, lower, finished_at in rows}


def events(system: System) -> list[str]:
    return [what for (what,) in system.postgres.execute("SELECT what FROM pdi2_migration.event ORDER BY id")]


def errors(system: System) -> list[str]:
    """What PostHog's administrators see; the newest comes last."""
    return [text for (text,) in system.postgres.execute("SELECT description FROM posthog_asyncmigrationerror")]


def cut_into_slices(system: System, seeded: Seeded, rows: int) -> None:
    """Gives every team's slices this many rows, as a memory limit in an earlier run would have done."""
    ledger = system.ledger()
    ledger.create()
    ledger.plan(dict.fromkeys(seeded.team_ids, 0))
    for team_id in seeded.team_ids:
        ledger.remember_range_rows(team_id, rows)


def lose_an_update(system: System, team_id: int) -> None:
    """Creates an id in the team and never delivers it to Kafka, so only Postgres knows it."""
    writer = system.writer()
    writer.create(team_id, "lost on the way")
    writer.outbox.clear()


@WITH_AND_WITHOUT_SETTINGS
def test_a_fresh_run_migrates_every_team_and_switches(system: System, seeded: Seeded, log: Any) -> None:
    stop_merges(system)  # a merge after the plan would change the old table's counts
    run = system.run()

    assert run.state == "success"
    assert is_migrated(system)
    assert system.value("SELECT finished_at >= started_at FROM posthog_asyncmigration")
    assert errors(system) == []

    assert Switches(system.postgres).reads() == Table.NEW
    assert all(truth_of(system.postgres, team_id) for team_id in seeded.team_ids)
    assert system.disagreements() == {}
    assert system.disagreements(Table.OLD) != {}, "the seed has histories that the old table's reader gets wrong"

    in_old = dict(system.clickhouse.query(f"SELECT team_id, count() FROM {Table.OLD} GROUP BY team_id").result_rows)
    teams = system.teams()
    assert {team_id: team.rows_source for team_id, team in teams.items()} == in_old
    assert {(team.status, team.attempts, team.error) for team in teams.values()} == {("verified", 1, None)}
    copied = f"SELECT team_id, uniqExact(distinct_id) FROM {Table.NEW} WHERE version < -1 GROUP BY team_id"
    for team_id, ids in system.clickhouse.query(copied).result_rows:
        assert teams[team_id].rows_copied >= ids > 0
    assert events(system) == [
        "dual_writes_enabled",
        "run_started",
        "connected_to",
        "dual_writes_proven",
        "planned",
        "certified",
        "read_times",
        "reads_switched",
        "switch_committed",
        "old_writes_stopped",
        "report",
        "certificate_written",
    ]

    labels = {task.rendered_map_index for task in run.get_task_instances() if task.map_index >= 0}
    assert labels == {f"team {team_id} · {rows:,} rows" for team_id, rows in in_old.items()}

    with create_session() as session:
        of_run = select(XComModel.task_id, XComModel.key).where(XComModel.run_id == run.run_id)
        left = session.execute(of_run.where(XComModel.task_id.in_(OF_FACTS)))
        assert set(left) == {(task_id, "return_value") for task_id in OF_FACTS}, "one request each, not one per fact"
    facts = run.get_task_instance("report").xcom_pull(task_ids="report")
    assert facts == system.ledger().latest("report")
    assert (facts["outcome"], facts["teams"], facts["verified"]) == ("completed", 3, 3)
    assert facts["rows_source"] == seeded.old_rows
    assert facts["rows_copied"] == sum(team.rows_copied for team in teams.values())
    assert system.ledger().current_run().outcome == "completed"
    text = next(message for message in log.messages if message.startswith("Report"))
    assert "Outcome: completed" in text
    assert f"{seeded.old_rows:,} in the old table" in text
    for team in teams.values():
        assert any(line.split()[:2] == [f"{team.team_id:,}", "verified"] for line in text.splitlines())


@pytest.mark.parametrize(
    "history", ["no ledger", pytest.param("a ledger of an earlier trial", marks=pytest.mark.chaos)]
)
def test_a_dry_run_writes_nothing(system: System, seeded: Seeded, log: Any, history: str) -> None:
    if history != "no ledger":
        migrate_together(system, system.ledger(), Settings(team_ids=(seeded.team_ids[-1],), settle_seconds=0))
    system.postgres.execute(f"ALTER DATABASE {system.database} SET default_transaction_read_only = on")
    before = dump(system)

    run = system.run(dry_run=True)

    assert run.state == "success"
    assert dump(system) == before
    assert ("pdi2_migration.team" in before) == (history != "no ledger")
    done = {task for task, state in states(run).items() if state == "success"}
    assert "plan_teams" in done
    assert not done & {"enable_dual_writes", "prove_dual_writes", "switch_reads", "stop_old_writes", "report"}
    assert any("3 teams" in message for message in log.messages), "the plan is logged"


def test_a_trial_never_switches_and_the_full_run_does_not_repeat_it(system: System, seeded: Seeded) -> None:
    trial = sorted(seeded.team_ids[-2:])

    run = system.run(team_ids=trial)

    assert run.state == "success"
    assert stands(system, reads="old", writes="both")
    assert system.status() != 2
    assert {team_id: team.status for team_id, team in system.teams().items()} == dict.fromkeys(trial, "verified")
    in_new = system.clickhouse.query(f"SELECT DISTINCT team_id FROM {Table.NEW} WHERE version < 0").result_rows
    assert sorted(team_id for (team_id,) in in_new) == trial
    assert not {"reads_switched", "old_writes_stopped"} & set(events(system))
    assert system.ledger().current_run().outcome == "trial passed"
    assert errors(system) == []
    tried = slices(system)

    assert system.run().state == "success"

    assert is_migrated(system)
    assert system.disagreements() == {}
    assert len(slices(system)) == 3
    assert tried.items() <= slices(system).items()
    assert {team_id: team.attempts for team_id, team in system.teams().items()} == dict.fromkeys(seeded.team_ids, 1)


@pytest.mark.parametrize(
    ("spoil", "conf", "reasons"),
    [
        *(
            pytest.param(
                lambda system: (
                    system.clickhouse.command(f"DROP TABLE {Table.NEW} SYNC"),
                    system.postgres.execute("DROP TABLE posthog_asyncmigrationerror"),
                ),
                conf,
                ["no table person_distinct_id2", "no table posthog_asyncmigrationerror"],
                id=f"a table missing in each database, {kind}",
            )
            for kind, conf in (("a run", {}), ("a dry run", {"dry_run": True}), ("a trial", {"team_ids": "1"}))
        ),
        pytest.param(
            lambda system: None,
            {"slice_rows": 7, "team_ids": [0]},
            ['Unknown parameter "slice_rows"'],
            id="an unknown conf key",
        ),
        pytest.param(
            lambda system: system.postgres.execute("UPDATE posthog_asyncmigration SET status = 1"),
            {},
            ["PostHog's own runner is running"],
            id="PostHog's own runner is running",
        ),
        pytest.param(
            lambda system: move_away_both_databases(),
            {"slice_rows": 7, "dry_run": True},
            [
                'Unknown parameter "slice_rows"',
                "Postgres cannot be reached through the Airflow connection posthog_postgres",
                "ClickHouse cannot be reached through the Airflow connection posthog_clickhouse",
            ],
            id="databases that cannot be reached",
        ),
    ],
)
def test_a_failed_preflight_says_why_and_changes_nothing(
    system: System,
    seeded: Seeded,
    failures: Callable[[], list[str]],
    spoil: Callable[[System], Any],
    conf: dict,
    reasons: list[str],
) -> None:
    spoil(system)
    before = dump(system)

    run = system.run(**conf)

    assert run.state == "failed"
    assert red(run) == {"preflight"}
    assert dump(system) == before
    [told] = [text for text in failures() if "PreflightError" in text]
    assert all(reason in told for reason in reasons)
    assert tries(run, "preflight") == [1], "a retry cannot help"
    assert "success" not in states(run).values()


def move_away_both_databases() -> None:
    """The `system` fixture set these variables, and restores them afterwards."""
    os.environ["AIRFLOW_CONN_POSTHOG_POSTGRES"] = json.dumps({"conn_type": "postgres", "host": "/nowhere"})
    os.environ["AIRFLOW_CONN_POSTHOG_CLICKHOUSE"] = json.dumps(
        {"conn_type": "clickhouse", "host": "127.0.0.1", "port": 1}
    )


@pytest.mark.parametrize("reason", ["the skip comment", "already completed"])
def test_where_there_is_nothing_to_do_the_run_ends_green(system: System, seeded: Seeded, reason: str) -> None:
    if reason == "the skip comment":
        system.clickhouse.command(
            f"ALTER TABLE {Table.OLD} COMMENT COLUMN distinct_id 'skip_0003_fill_person_distinct_id2'"
        )
    else:
        earlier_run(system)
    before = dump(system)

    run = system.run()

    assert run.state == "success"
    assert dump(system) == before
    assert {task for task, state in states(run).items() if state != "skipped"} == {"preflight", "end"}


@WITH_SETTINGS
def test_a_run_after_the_switch_stops_old_writes_and_nothing_else(system: System, seeded: Seeded) -> None:
    earlier_run(system, stop_old_writes=False)
    assert (switch(system), system.switches()) == ((2, 100), {"reads": "new", "writes": "both"})
    copied, finished = slices(system), system.value("SELECT finished_at FROM posthog_asyncmigration")

    run = system.run()

    assert run.state == "success"
    assert is_migrated(system)
    assert slices(system) == copied
    assert system.value("SELECT finished_at FROM posthog_asyncmigration") == finished
    assert events(system)[-1] == "old_writes_stopped"
    assert {task for task, state in states(run).items() if state != "skipped"} == {
        "preflight",
        "stop_old_writes",
        "end",
    }


@pytest.mark.parametrize(
    "shared_tasks",
    [pytest.param(False, marks=pytest.mark.chaos, id="one task per team"), pytest.param(True, id="teams share tasks")],
)
def test_a_team_that_cannot_be_copied_stops_no_other_and_the_rerun_does_what_is_missing(
    system: System, seeded: Seeded, monkeypatch: pytest.MonkeyPatch, shared_tasks: bool
) -> None:
    if shared_tasks:
        monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "1")
    cut_into_slices(system, seeded, rows=1_000)
    broken, healthy = seeded.team_ids[0], seeded.team_ids[1:]
    query = f"SELECT hex(distinct_id) FROM {Table.OLD} WHERE team_id = {broken} ORDER BY 1 LIMIT 1 OFFSET 6500"
    middle = system.clickhouse.query(query).result_rows[0][0]
    refuse(system, f"team_id = {broken} AND version < 0 AND distinct_id >= unhex('{middle}')")

    run = system.run()

    assert run.state == "failed"
    teams = system.teams()
    assert {team_id: teams[team_id].status for team_id in healthy} == dict.fromkeys(healthy, "verified")
    assert teams[broken].status == "failed"
    assert teams[broken].slices_done >= 1, "it failed on the way"
    assert "469" in teams[broken].error
    assert set(tries(run, "team.copy")) == {1}, "a retry cannot help"
    assert tries(run, "team.copy") == [1] * (1 if shared_tasks else 3)
    assert [task.partition("[")[0] for task in red(run)] == ["team.copy"]
    assert "certified" not in events(system)
    assert switch(system)[0] == 3
    assert switch(system)[1] < 99
    assert stands(system, reads="old", writes="both")
    [reason] = errors(system)
    assert f"team {broken}: failed" in reason
    assert "ClickHouse error 469" in reason
    assert "1 of 3 teams is not verified" in reason
    assert not [team_id for team_id in healthy if f"team {team_id}:" in reason]
    assert system.ledger().current_run().outcome == "failed"
    done = slices(system)

    accept(system)
    assert system.run().state == "success"

    assert is_migrated(system)
    assert system.disagreements() == {}
    assert done.items() <= slices(system).items(), "no finished slice was copied again"
    assert {team_id for team_id, _ in slices(system).keys() - done.keys()} == {broken}
    assert {team_id: team.attempts for team_id, team in system.teams().items()} == (
        dict.fromkeys(healthy, 1) | {broken: 2}
    )


def test_a_team_that_cannot_be_repaired_is_only_verified_again(system: System, seeded: Seeded) -> None:
    broken, healthy = seeded.team_ids[1], {*seeded.team_ids} - {seeded.team_ids[1]}
    lose_an_update(system, broken)
    refuse(system, f"team_id = {broken} AND version >= -1")

    run = system.run()

    assert run.state == "failed"
    assert {team_id for team_id, team in system.teams().items() if team.status == "verified"} == healthy
    assert system.teams()[broken].status == "failed"
    assert sorted(tries(run, "team.verify")) == [1, 1, 1]
    assert [task.partition("[")[0] for task in red(run)] == ["team.verify"]
    assert switch(system)[0] == 3
    assert stands(system, reads="old", writes="both")
    assert "ClickHouse error 469" in errors(system)[-1]
    done = slices(system)
    assert {team_id for team_id, _ in done} == set(seeded.team_ids)

    accept(system)
    assert system.run().state == "success"

    assert is_migrated(system)
    assert slices(system) == done
    assert system.disagreements() == {}
    kind = f"SELECT kind FROM pdi2_migration.finding WHERE team_id = {broken} AND distinct_id = 'lost on the way'"
    assert system.value(f"{kind} AND repaired") == "missing"


def test_a_run_whose_plan_lacks_a_team_fails_and_the_next_one_copies_it(system: System, seeded: Seeded) -> None:
    when_recorded(
        system,
        "event",
        "NEW.what = 'planned'",
        f"""
        INSERT INTO posthog_team (id, name) VALUES ({LATE_TEAM}, 'late') ON CONFLICT DO NOTHING;
        INSERT INTO posthog_person (id, uuid, team_id) VALUES ({LATE_TEAM}, gen_random_uuid(), {LATE_TEAM})
        ON CONFLICT DO NOTHING;
        INSERT INTO posthog_persondistinctid (distinct_id, person_id, team_id, version)
        VALUES ('late', {LATE_TEAM}, {LATE_TEAM}, 0) ON CONFLICT DO NOTHING
        """,
    )

    run = system.run()

    assert run.state == "failed"
    assert red(run) == {"certify"}
    assert system.status() == 3
    assert stands(system, reads="old", writes="both")
    assert {team.status for team in system.teams().values()} == {"verified"}
    certify = "SELECT detail->>'error' FROM pdi2_migration.event WHERE what = 'task_failed'"
    assert "1 of 4 teams is not verified" in system.value(certify)
    assert f"team {LATE_TEAM}" in errors(system)[-1]
    done = slices(system)

    assert system.run().state == "success"

    assert is_migrated(system)
    assert system.teams()[LATE_TEAM].status == "verified"
    assert system.disagreements() == {}
    assert done.items() <= slices(system).items()


def test_an_empty_system_switches_too(system: System) -> None:
    run = system.run()

    assert run.state == "success"
    assert is_migrated(system)
    assert system.teams() == {}
    assert system.ledger().latest("certified")["teams"] == 0
    assert states(run)["report"] == "success"


@WITH_SETTINGS
def test_rollback_is_at_once_while_old_writes_go_on_and_a_new_run_proves_every_team_anew(
    system: System, seeded: Seeded
) -> None:
    earlier_run(system, stop_old_writes=False)

    assert system.run(ROLLBACK).state == "success"

    assert system.status() == 4
    assert stands(system, reads="old", writes="both")
    assert Switches(system.postgres).reads() == Table.OLD
    assert events(system)[-1] == "rolled_back"
    copied = slices(system)
    lose_an_update(system, seeded.team_ids[0])
    assert system.disagreements() == {seeded.team_ids[0]: {"lost on the way"}}

    assert system.run().state == "success"

    assert is_migrated(system)
    assert slices(system) == copied
    assert system.disagreements() == {}


@WITH_AND_WITHOUT_SETTINGS
def test_rollback_refuses_once_old_writes_have_stopped(
    system: System, seeded: Seeded, failures: Callable[[], list[str]]
) -> None:
    earlier_run(system)
    writer = system.writer()
    writer.create(seeded.team_ids[0], "newer than the switch")
    assert {message.table for message in writer.flush()} == {Table.NEW}
    before = dump(system)

    run = system.run(ROLLBACK)

    assert run.state == "failed"
    assert dump(system) == before
    assert tries(run, "roll_back") == [1]
    told = "Old writes have stopped" if system.switches() else "stops writing the old table by itself"
    assert any(told in text for text in failures())


@contextlib.contextmanager
def traffic(system: System, team_id: int, hears_of_the_switch: Callable[[psycopg.Connection], bool]) -> Iterator[None]:
    """An application process that creates ids all the time. It believes what the switch said when it started."""
    ended = threading.Event()
    broken: list[BaseException] = []

    def work() -> None:
        try:
            with psycopg.connect(system.uri, autocommit=True) as postgres, system.client() as clickhouse:
                writer = Writer(postgres, clickhouse, Switches(postgres, cache_seconds=math.inf))
                number, deaf = 0, True
                while not ended.wait(0.1):
                    if deaf and hears_of_the_switch(postgres):
                        writer.switches, deaf = Switches(postgres, cache_seconds=0), False
                    writer.create(team_id, f"live {(number := number + 1)}")
                    writer.flush()
        except BaseException as error:
            broken.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not broken


@WITH_SETTINGS  # without them, every process writes both tables from its start
def test_a_writer_that_ignores_the_switch_is_caught_before_anything_is_copied(
    system: System, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    team_id = seeded.team_ids[2]
    in_new = dump(system)["person_distinct_id2"]
    observe = proof.observe

    def look_once_it_wrote(ledger: Ledger, *others: Any) -> Any:
        """However slowly the writer gets on: without a link since the switch, the system would count as idle."""
        since = ledger.latest("dual_writes_enabled")["enabled_at"]
        links = f"SELECT count() FROM {Table.OLD} WHERE _timestamp > {since}"
        until(lambda: system.clickhouse.query(links).result_rows != [(0,)])
        return observe(ledger, *others)

    monkeypatch.setattr(proof, "observe", look_once_it_wrote)
    with traffic(system, team_id, hears_of_the_switch=lambda postgres: False):
        run = system.run(read_cache_seconds=2)

    assert run.state == "failed"
    assert red(run) == {"prove_dual_writes"}
    assert dump(system)["person_distinct_id2"] == in_new
    assert slices(system) == {}
    assert system.teams() == {}
    missed = system.ledger().latest("dual_writes_missed")
    assert missed["misses"] >= 1
    assert f'team {team_id}, distinct_id "live ' in missed["examples"]
    assert system.status() == 3
    assert stands(system, reads="old", writes="both")
    assert "A writer ignores the dual-write switch" in errors(system)[-1]
    assert '"live ' in errors(system)[-1]


def test_live_traffic_whose_cache_of_the_switch_is_stale_for_a_while_loses_nothing(
    system: System, seeded: Seeded
) -> None:
    def a_second_ago(postgres: psycopg.Connection) -> bool:
        query = (
            "SELECT 1 FROM pdi2_migration.event WHERE what = 'run_started' AND at < clock_timestamp() - interval '1 s'"
        )
        return postgres.execute(query).fetchone() is not None

    system.ledger().create()
    with traffic(system, seeded.team_ids[2], hears_of_the_switch=a_second_ago):
        run = system.run(settle_seconds=5)  # the writer may be slow: its last link of before must leave the window

    assert run.state == "success"
    assert is_migrated(system)
    assert system.disagreements() == {}


def test_a_lost_connection_is_retried_from_the_checkpoint(
    system: System, seeded: Seeded, retries_at_once: None
) -> None:
    """The first try of the largest team loses Postgres between a slice's insert and its checkpoint."""
    cut_into_slices(system, seeded, rows=1_000)
    largest = seeded.team_ids[0]
    first_try = f"(SELECT attempts = 1 FROM pdi2_migration.team WHERE team_id = {largest})"
    hang_up = f"IF {first_try} THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF"
    when_recorded(system, "slice", f"NEW.team_id = {largest} AND NEW.lower <> ''", hang_up)

    run = system.run()

    assert run.state == "success"
    assert sorted(tries(run, "team.copy")) == [1, 1, 2]
    assert system.teams()[largest].attempts == 2
    assert system.teams()[largest].slices_done == len([key for key in slices(system) if key[0] == largest])
    assert is_migrated(system)
    assert system.disagreements() == {}


def test_a_busy_server_puts_copies_off_and_uses_up_no_try(
    system: System, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdi2.core.cluster.pressure.LOOK_EVERY_SECONDS", 0.01)
    monkeypatch.setattr("pdi2.core.cluster.pressure.WAIT_IN_SLOT_SECONDS", 0.05)
    monkeypatch.setattr("pdi2.edge.connections.PUT_OFF_SECONDS", 1)
    system.clickhouse.command(f"ALTER TABLE {Table.NEW} MODIFY SETTING parts_to_delay_insert = 1")

    def relieve() -> None:
        until(lambda: "copy_put_off" in events(system))
        system.clickhouse.command(f"ALTER TABLE {Table.NEW} MODIFY SETTING parts_to_delay_insert = 1000")

    system.ledger().create()
    with ThreadPoolExecutor() as aside:
        relieved = aside.submit(relieve)
        run = system.run()
        relieved.result()

    assert run.state == "success"
    assert tries(run, "team.copy") == [1, 1, 1]
    assert {"copy_waits", "copy_put_off"} <= set(events(system))
    assert system.disagreements() == {}


def test_a_try_waits_for_an_earlier_one_that_still_works(
    system: System, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its supervisor was killed, so that Airflow tries again; each would drop the other's helper tables."""
    monkeypatch.setattr("pdi2.edge.connections.PUT_OFF_SECONDS", 1)
    held, *others = sorted(seeded.team_ids)
    earlier = system.ledger()

    def end() -> str:
        with alone_with(earlier, [held]):
            until(lambda: {team.status for team in earlier.teams(others)} == {"verified"})
            return earlier.team(held).status

    earlier.create()
    with ThreadPoolExecutor() as aside:
        ended = aside.submit(end)
        until(lambda: held_by(system.ledger(), held))
        run = system.run()

    assert ended.result() == "planned"
    assert run.state == "success"
    assert tries(run, "team.copy") == [1, 1, 1]
    assert system.disagreements() == {}


def test_a_run_waits_for_another_that_is_running(
    system: System, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdi2.edge.retries.FIRST_DELAY", timedelta(seconds=1))
    other = psycopg.connect(system.uri, autocommit=True)
    other.execute("SELECT pg_advisory_lock_shared(hashtext('pdi2_migration'), 0)")

    def named_and_gone(ledger: Ledger) -> str:
        holder = held_by(ledger)
        other.close()
        return holder

    monkeypatch.setattr("pdi2.core.plan.preflight.held_by", named_and_gone)
    before = dump(system)

    run = system.run(dry_run=True)

    assert run.state == "success"
    assert tries(run, "preflight")[0] > 1
    assert dump(system) == before


def test_the_audit_rings_the_alarm_and_repairs_on_demand(system: System) -> None:
    two_ids_each(system, TEAM, TEAM + 1)
    assert system.run(AUDIT).state == "success", "nothing is migrated, nothing is compared"
    earlier_run(system)
    assert system.run(AUDIT).state == "success"

    insert_truth(system, BOB, 0, "lost")
    owner = system.ledger().current_run()
    red = system.run(AUDIT, in_flight_seconds=0)
    assert red.state == "failed"
    assert {task.task_id: task.state for task in red.get_task_instances()} == {
        "choose_teams": "success",
        "compare": "success",
        "report_drift": "failed",
    }
    assert system.disagreements() == {TEAM: {"lost"}}

    assert system.run(AUDIT, in_flight_seconds=0, repair=True).state == "success"
    assert system.disagreements() == {}
    assert system.ledger().current_run() == owner


def test_an_audit_that_is_cleared_and_cannot_choose_its_teams_is_red(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cleared in the UI, a run keeps its name. `dag.test` cannot do that, so the second run gets the first one's."""
    begin = Ledger.__init__
    monkeypatch.setattr(Ledger, "__init__", lambda self, connection, run, actor: begin(self, connection, "it", actor))
    two_ids_each(system, TEAM)
    assert system.run(AUDIT).state == "success"
    system.clickhouse.command("RENAME TABLE person_distinct_id2 TO away")

    assert system.run(AUDIT).state == "failed"


@WITH_SETTINGS
def test_a_run_that_waited_for_its_turn_undoes_no_rollback(system: System, failures: Callable[[], list[str]]) -> None:
    two_ids_each(system, TEAM)
    earlier_run(system, stop_old_writes=False)
    roll_back(system.ledger("the rollback"))
    system.postgres.execute("UPDATE pdi2_migration.event SET at = at + interval '1 hour' WHERE what = 'rolled_back'")
    before = dump(system)

    assert system.run().state == "failed"

    assert any("this run was triggered by a person before that" in text for text in failures())
    assert dump(system) == before


def test_a_dry_run_that_has_the_name_of_a_forgotten_run_does_not_migrate(
    system: System, monkeypatch: pytest.MonkeyPatch, failures: Callable[[], list[str]]
) -> None:
    """Somebody deleted a run in Airflow, and triggered one with the same id."""
    two_ids_each(system, TEAM)
    migrate_together(system, system.ledger("it"))
    close_run(system.ledger("it"), NO_WAIT)
    begin = Ledger.__init__
    monkeypatch.setattr(Ledger, "__init__", lambda self, connection, run, actor: begin(self, connection, "it", actor))
    before = dump(system)

    assert system.run(dry_run=True).state == "failed"

    assert any("knows an earlier run of this name" in text for text in failures())
    assert dump(system) == before


@contextlib.contextmanager
def elsewhere(uri: str, path: str) -> Iterator[System]:
    """The databases of the command line's story, opened in a process of their own: chDB has one path per process."""
    with (
        psycopg.connect(uri, autocommit=True) as postgres,
        clickhouse_connect.get_client(interface="chdb", path=path) as clickhouse,
    ):
        yield System(postgres, clickhouse, path, "default", uri)


def prepare_elsewhere(uri: str, path: str) -> None:
    with elsewhere(uri, path) as system:
        schema.create_clickhouse(system.clickhouse)
        seed(system.postgres, system.clickhouse, rows=14_000, teams=4, seed=5)


def disagreements_elsewhere(uri: str, path: str) -> dict[int, set[str]]:
    with elsewhere(uri, path) as system:
        return system.disagreements()


def in_a_process(work: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


@pytest.mark.chaos
def test_the_command_line_migrates_other_databases(postgres_server: embedded.Postgres, tmp_path: Path) -> None:
    database, path = "somebody_elses", str(tmp_path / "clickhouse")
    postgres_server.create_database(database, template="posthog_template")
    uri = postgres_server.uri(database)
    in_a_process(prepare_elsewhere, uri, path)
    connections = {
        "AIRFLOW_CONN_POSTHOG_POSTGRES": json.dumps(postgres_server.airflow_connection(database)),
        "AIRFLOW_CONN_POSTHOG_CLICKHOUSE": json.dumps(
            {"conn_type": "clickhouse", "extra": {"client_kwargs": {"interface": "chdb", "path": path}}}
        ),
    }

    command = ["airflow", "dags", "test", FILL, "--conf", json.dumps(NOTHING_TO_WAIT_FOR)]
    subprocess.run(command, env=os.environ | connections, check=True, capture_output=True)

    assert in_a_process(disagreements_elsewhere, uri, path) == {}
    with psycopg.connect(uri, autocommit=True) as postgres:
        assert postgres.execute("SELECT status, progress FROM posthog_asyncmigration").fetchall() == [(2, 100)]
        values = postgres.execute("SELECT raw_value FROM posthog_instancesetting").fetchall()
        assert values == [('"new"',), ('"new"',)]
        status = "SELECT status, count(*) FROM pdi2_migration.team GROUP BY status"
        assert postgres.execute(status).fetchall() == [("verified", 4)]
