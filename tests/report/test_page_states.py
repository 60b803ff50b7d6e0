# ruff: noqa: F811  (fixtures of test_page)
"""What the migration page says in each state: whether it is safe, what is wrong, how far which run has come."""

import ast
import hashlib
import json
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.jobs.job import Job
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.pool import Pool
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from conftest import AUDIT, FILL, ROLLBACK, ROOT, System, dags
from pdi2.core.copy.copying import copy_team
from pdi2.core.report import certificate, progress, reporting, runbook, telling, verdict
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.state.switches import COPY_SHARE, Switches
from pdi2.core.state.words import quoted
from pdi2.core.switch import gate, rollback
from pdi2.core.verify import auditing
from pdi2.core.verify.auditing import DriftError
from pdi2.edge import POOL
from pdi2.edge.compat import RetryPolicy
from pdi2.edge.runs import UNEXPLAINED
from stories import (
    BOB,
    NO_WAIT,
    add_teams,
    copy_and_verify,
    earlier_run,
    enable,
    insert_truth,
    many_ids,
    migrate_together,
    plan,
    stop_old_writes,
    two_ids_each,
)
from test_page import Visitor, admin, app, running, viewer  # noqa: F401  (fixtures)

from demo.switches import READS, WRITES, set_switch

HOSTILE_ID = b'x" Postgres does not answer'

pytestmark = pytest.mark.usefixtures("airflow_metadata")
AWAY = "Try 2 met a passing failure: prove_dual_writes was stopped: ClickHouse does not answer: refused"
explained = pytest.mark.skipif(RetryPolicy is None, reason="this Airflow does not keep why a try failed")


@pytest.fixture(autouse=True)
def alone(airflow_metadata: None) -> Iterator[None]:
    _forget_runs()  # of other tests in this process
    yield
    _forget_runs()


def _forget_runs() -> None:
    with create_session() as session:
        session.query(DagRun).filter(DagRun.dag_id.in_([FILL, ROLLBACK, AUDIT])).delete()


@pytest.fixture
def ledger(system: System) -> Ledger:
    return system.ledger(f"{FILL} a run that Airflow has forgotten")


def first_line(viewer: Visitor, **run: str) -> dict[str, Any]:
    return viewer.get("/status", **run).json()["verdict"]


# Safe or not


def test_the_first_line_says_which_table_is_read_and_what_can_no_longer_be_undone(
    system: System, viewer: Visitor, ledger: Ledger
) -> None:
    settings = Settings(settle_seconds=0, read_cache_seconds=900)
    assert first_line(viewer)["topic"] == "No migration has run"
    migrate_together(system, ledger, settings)
    assert "Nothing is irreversible before old writes stop" in first_line(viewer)["text"]
    gate.switch_reads(ledger, system.warehouse(), settings)

    switched = first_line(viewer)

    finished_at = system.value("SELECT finished_at FROM posthog_asyncmigration")
    assert datetime.fromisoformat(switched["until"]) == finished_at + timedelta(seconds=900)
    assert (switched["tone"], switched["text"]) == ("warn", "Readers use the new table. Old writes stop at")
    assert switched["after"].startswith(": until then a rollback is possible")
    system.postgres.execute("UPDATE posthog_asyncmigration SET finished_at = finished_at - interval '901 s'")
    late = first_line(viewer)
    assert late["text"] == "Readers use the new table. Old writes may stop at any moment; they were due at"
    assert late["after"].startswith(": until they stop a rollback is possible")
    stop_old_writes(system, ledger)
    stopped = first_line(viewer)
    assert "irreversible" in stopped["text"]
    assert stopped["until"] is None


def test_without_instance_settings_it_says_before_the_switch_that_it_is_irreversible(
    system: System, viewer: Visitor, ledger: Ledger
) -> None:
    """PostHog 1.32 and 1.33 have none, and stop writing the old table by themselves."""
    system.postgres.execute("DROP TABLE posthog_instancesetting")
    migrate_together(system, ledger, Settings(settle_seconds=0, read_cache_seconds=900))

    assert "The switch is irreversible" in first_line(viewer)["text"]
    gate.certify(ledger, system.warehouse(), NO_WAIT)
    gate.switch_reads(ledger, system.warehouse(), NO_WAIT)
    assert viewer.get("/status").json()["waits"] == [], "the run waits for no reader's cache there"
    stop_old_writes(system, ledger)
    told = first_line(viewer)
    assert "Each PostHog process ends its old writes when it is restarted" in told["text"]
    assert told["do"].startswith("Restart them. Keep the audit scheduled, and the old table")
    assert told["runbook"]["about"] == "Old writes end by a restart"
    [last, *_] = viewer.get("/events").json()["lines"]
    assert "when it is restarted" in last["text"]


@pytest.mark.parametrize("stopped", [True, False])
def test_after_the_switch_it_is_an_alarm_if_the_old_table_alone_is_written(
    system: System, viewer: Visitor, ledger: Ledger, stopped: bool
) -> None:
    migrate_together(system, ledger)
    gate.switch_reads(ledger, system.warehouse(), NO_WAIT)
    if stopped:
        stop_old_writes(system, ledger)

    set_switch(system.postgres, WRITES, "old")

    told = first_line(viewer)
    assert (told["tone"], told["topic"]) == ("bad", "The new table lacks writes")
    assert told["runbook"]["about"] == told["topic"]


def test_after_a_rollback_it_says_to_restart_posthogs_processes(
    system: System, viewer: Visitor, ledger: Ledger
) -> None:
    migrate_together(system, ledger)
    gate.switch_reads(ledger, system.warehouse(), NO_WAIT)
    rollback.roll_back(system.ledger(f"{ROLLBACK} one"))

    seen = viewer.get("/status").json()

    told = seen["verdict"]
    assert told["do"].startswith("Restart PostHog's processes")
    assert told["runbook"]["about"] == told["topic"] == "Rolled back"
    assert seen["phase"] == "Rolled back: reads are on the old table"
    assert seen["steps"] == []
    assert (seen["switch"]["reads"], seen["switch"]["writes"]) == ("old", "both")


def test_a_switch_that_stays_open_to_a_rollback_says_so(system: System, viewer: Visitor, ledger: Ledger) -> None:
    settings = Settings(settle_seconds=0, read_cache_seconds=900, stop_old_writes=False)
    migrate_together(system, ledger, settings)
    gate.switch_reads(ledger, system.warehouse(), settings)

    told = first_line(viewer)

    assert "a rollback is possible" in told["text"]
    assert told["until"] is None


def test_switches_that_disagree_are_an_alarm(system: System, viewer: Visitor, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    system.postgres.execute(
        "INSERT INTO posthog_instancesetting (key, raw_value) VALUES"
        " ('constance:posthog:PERSON_DISTINCT_ID_READS', '\"new\"')"
        " ON CONFLICT (key) DO UPDATE SET raw_value = excluded.raw_value"
    )

    assert (first_line(viewer)["tone"], first_line(viewer)["topic"]) == ("bad", "The switches disagree")


@pytest.mark.parametrize("before", ["nothing", "failed", "unknown to this Airflow"])
def test_while_a_run_checks_nobody_is_told_to_trigger_another(
    system: System, viewer: Visitor, ledger: Ledger, request: pytest.FixtureRequest, before: str
) -> None:
    if before != "nothing":
        enable(system, ledger)
    if before == "failed":
        ledger.end_run("failed")
        assert first_line(viewer)["topic"] == "The run failed"
    run_id = request.getfixturevalue("running")

    told = first_line(viewer)

    assert (told["tone"], told["topic"], told["do"]) == ("good", "A run is checking", "Nothing yet; a run is checking.")
    set_run(run_id, state="failed")
    assert first_line(viewer)["topic"] == "A run could not begin"


def test_a_run_that_airflow_does_not_know_is_not_shown_as_running(
    system: System, viewer: Visitor, ledger: Ledger, request: pytest.FixtureRequest
) -> None:
    """Somebody deleted it, or it belongs to another Airflow."""
    enable(system, ledger)
    deleted = first_line(viewer)
    enable(system, system.ledger(f"{FILL} {request.getfixturevalue('running')}"))

    assert (deleted["tone"], deleted["topic"]) == ("warn", "This Airflow does not know the run")
    assert "goes on from the last checkpoint" in deleted["do"]
    assert first_line(viewer)["topic"] == "Running"


@pytest.mark.parametrize("release", ["1.32", "1.34"], indirect=True)
@pytest.mark.parametrize("stopped", [True, False])
def test_reads_that_somebody_returns_by_hand_are_safe_only_while_the_old_table_is_written(
    system: System, viewer: Visitor, ledger: Ledger, stopped: bool
) -> None:
    """PostHog's page has a rollback of its own. 1.32 stops writing the old table by itself."""
    migrate_together(system, ledger)
    gate.switch_reads(ledger, system.warehouse(), NO_WAIT)
    if stopped:
        stop_old_writes(system, ledger)
    ledger.end_run("completed")
    system.postgres.execute("UPDATE posthog_asyncmigration SET status = 4")
    settings = "reads" in system.switches()
    if settings:
        set_switch(system.postgres, READS, "old")

    seen = viewer.get("/status").json()

    safe = settings and not stopped
    assert seen["verdict"]["topic"] == ("Rolled back" if safe else "The old table lacks writes")
    assert seen["verdict"]["text"].startswith("Safe: ") is safe
    assert seen["phase"] == "Complete: reads are on the old table"


def test_runs_that_only_the_ledger_knows_are_listed_with_the_newest_first(system: System, viewer: Visitor) -> None:
    """As after Airflow's database was cleaned."""
    names = [f"{FILL} {number}" for number in range(3)]
    for name in names:
        enable(system, ledger := system.ledger(name))
        ledger.end_run("failed")
    assert [line["airflow_run"] for line in viewer.get("/runs").json()["lines"]] == names[::-1]


@pytest.mark.parametrize("release", ["1.32", "1.34"], indirect=True)
def test_a_new_run_does_not_hide_that_the_old_table_lacks_writes(
    system: System, viewer: Visitor, ledger: Ledger
) -> None:
    earlier_run(system)
    system.postgres.execute("UPDATE posthog_asyncmigration SET status = 4")
    if "reads" in system.switches():
        set_switch(system.postgres, READS, "old")
        set_switch(system.postgres, WRITES, "both")

    migrate_together(system, ledger)
    assert first_line(viewer)["topic"] == "The old table lacks writes"
    gate.switch_reads(ledger, system.warehouse(), NO_WAIT)
    assert "a rollback is possible" not in first_line(viewer)["text"]


@pytest.mark.parametrize("release", ["1.32", "1.34"], indirect=True)
def test_a_switch_that_somebody_else_made_is_an_alarm_on_the_page_and_in_the_certificate(
    system: System, viewer: Visitor, ledger: Ledger
) -> None:
    """PostHog's own runner completes the row, or a person does: readers use the new table from then on."""
    many_ids(system, 500)
    migrate_together(system, ledger)
    gate.certify(ledger, system.warehouse(), NO_WAIT)
    system.postgres.execute("UPDATE posthog_asyncmigration SET status = 2, progress = 100, finished_at = now()")
    if "reads" in system.switches():
        set_switch(system.postgres, READS, "new")

    while_it_works = first_line(viewer)
    drawn_up = certificate.draw_up(ledger, reporting.close_run(ledger, NO_WAIT))

    seen = viewer.get("/status").json()
    for told in (while_it_works, seen["verdict"]):
        assert (told["tone"], told["topic"], told["until"]) == ("bad", "Somebody else switched reads", None)
    assert seen["links"]["audit"] == f"/dags/{AUDIT}", "the first line says to trigger it"
    assert seen["phase"] == "Failed: reads are on the new table"
    facts, html = drawn_up.files.values()
    assert json.loads(facts)["report"]["reads"] == reporting.ELSEWHERE
    assert "on the old table" not in html
    assert "until old writes stop" not in html, "this run does not stop them any more"
    assert '<p class="good">' not in html
    assert "Reads are on the new table, and not by this run" in reporting.text(json.loads(facts)["report"], [])
    assert not reporting.got_through(ledger, NO_WAIT)


def test_a_switch_that_somebody_else_made_is_no_alarm_once_an_audit_of_every_team_finds_nothing_wrong(
    system: System, viewer: Visitor, ledger: Ledger
) -> None:
    look, repair = (Settings(in_flight_seconds=0, repair=repair) for repair in (False, True))
    some = Settings(in_flight_seconds=0, repair=False, team_ids=(7,))
    two_ids_each(system, 7, 8)
    migrate_together(system, ledger)
    audit(system, look)  # of before the switch
    system.postgres.execute("UPDATE posthog_asyncmigration SET status = 2, progress = 100, finished_at = now()")
    set_switch(system.postgres, READS, "new")

    def topic() -> str:
        return first_line(viewer)["topic"]

    assert topic() == "Somebody else switched reads"
    audit(system, some)
    assert topic() == "Somebody else switched reads"
    insert_truth(system, BOB, 0, "lost", team_id=8)
    with pytest.raises(DriftError):
        audit(system, look)
    assert topic() == "The new table answers wrongly"
    audit(system, repair)
    told = first_line(viewer)
    assert (told["tone"], told["topic"]) == ("good", "Somebody else switched reads, and an audit found no drift")
    planned_at = system.value("SELECT max(at) FROM pdi2_migration.event WHERE what = 'audit_planned'")
    assert datetime.fromisoformat(told["until"]) == planned_at
    audits = [line["text"] for line in viewer.get("/events").json()["lines"]]
    assert audits[0] == "An audit ended: 2 teams compared, and no id is wrong."

    insert_truth(system, BOB, 0, "lost again", team_id=8)
    with pytest.raises(DriftError):
        audit(system, look)
    assert topic() == "The new table answers wrongly", "a later audit found drift"


def test_drift_after_the_switch_is_an_alarm_until_an_audit_finds_it_gone(
    system: System, viewer: Visitor, ledger: Ledger
) -> None:
    look = Settings(in_flight_seconds=0, repair=False)
    two_ids_each(system, 7, 8)
    migrate_together(system, ledger)
    gate.switch_reads(ledger, system.warehouse(), NO_WAIT)
    stop_old_writes(system, ledger)
    ledger.end_run("completed")
    assert first_line(viewer)["tone"] == "good"
    for distinct_id in ("lost", "late"):
        insert_truth(system, BOB, 0, distinct_id, team_id=8)

    with pytest.raises(DriftError):
        audit(system, look)

    told = first_line(viewer)
    assert told["tone"] == "bad"
    assert told["text"].startswith("Readers use the new table, and it answers 2 ids wrongly. Old writes have stopped")
    assert '{"repair": true}' in told["do"]
    assert told["runbook"]["about"] == "The new table answers wrongly"
    [last, *_] = viewer.get("/events").json()["lines"]
    assert last["text"] == "An audit ended: 2 teams compared, and 2 ids are wrong."
    system.postgres.execute("DELETE FROM posthog_persondistinctid WHERE distinct_id = 'late'")
    with pytest.raises(DriftError):
        audit(system, look)
    assert "answers 1 id wrongly" in first_line(viewer)["text"], "what is right again does not count"
    system.postgres.execute("DELETE FROM posthog_persondistinctid WHERE distinct_id = 'lost'")
    audit(system, look)
    assert first_line(viewer)["topic"] == "Old writes have stopped"
    assert viewer.get("/status").json()["findings"]["missing"]["remaining"] == 0


def test_drift_is_shown_where_somebody_else_switched_and_no_run_ever_began(system: System, viewer: Visitor) -> None:
    """Its team is deleted later: no audit compares it again, and nothing is wrong any more."""
    insert_truth(system, BOB, 0, "lost")
    system.ledger().create()
    Switches(system.postgres).create_row()
    system.postgres.execute("UPDATE posthog_asyncmigration SET status = 2, progress = 100, finished_at = now()")
    set_switch(system.postgres, READS, "new")
    set_switch(system.postgres, WRITES, "both")

    with pytest.raises(DriftError):
        audit(system, Settings(in_flight_seconds=0, repair=False))

    seen = viewer.get("/status").json()
    assert seen["verdict"]["topic"] == "The new table answers wrongly"
    assert seen["findings"] == {"missing": {"repaired": 0, "remaining": 1}}
    system.postgres.execute("DELETE FROM posthog_persondistinctid")
    audit(system, Settings(in_flight_seconds=0, repair=False))
    assert first_line(viewer)["tone"] == "good"


def audit(system: System, settings: Settings) -> None:
    ledger, warehouse = system.ledger("the audit"), system.warehouse()
    for batch in auditing.plan(ledger, warehouse, settings, 1):
        for teams in auditing.groups(warehouse, batch.team_ids):
            auditing.record(ledger, auditing.audit(ledger, warehouse, teams, settings))
    auditing.judge(ledger)


def test_every_first_line_has_a_row_in_the_runbook() -> None:
    tree = ast.parse((ROOT / "plugins" / "pdi2" / "core" / "report" / "verdict.py").read_text())
    topics = {
        call.args[3].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == verdict.Verdict.__name__
        if isinstance(call.args[3], ast.Constant)
    }

    assert len(topics) > 10
    for topic in topics:
        assert runbook.row_about(str(topic)), topic


def test_a_message_leads_to_the_runbooks_row_of_what_comes_first_in_it() -> None:
    gate_says = "3 of 4 teams are not verified, so reads stay: team 7: failed (cannot be copied: an error)"

    assert runbook.row_of_message(gate_says)["about"] == "`N of M … not verified`"  # type: ignore[index]
    assert runbook.row_of_message("a text of nobody's") is None
    assert runbook.row_of_message("the task `team.copy` and `approve` of an alarm") is None


def test_an_id_that_reads_like_a_cause_is_not_taken_for_one(system: System, viewer: Visitor, ledger: Ledger) -> None:
    told = f"2 ids differ, such as {quoted(HOSTILE_ID)}."
    enable(system, ledger)
    ledger.plan({7: 10})
    ledger.set_failed([7], told)

    assert [one["cause"][:12] for one in viewer.get("/status").json()["failures"]] == ["N ids differ"]
    assert telling.known_cause(told) is None
    assert telling.cause(told).startswith("N ids differ")
    assert telling.cause(f"{told} ClickHouse does not answer: {told}") == "ClickHouse does not answer"


def test_a_long_text_cannot_hold_up_the_page() -> None:
    def too_long(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(10)
    try:
        assert runbook.row_of_message(" of " * 1000) is None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_minute_in_which_nothing_moves_is_in_the_first_line(system: System, viewer: Visitor, running: str) -> None:
    ledger = system.ledger(f"{FILL} {running}")
    many_ids(system, 500)
    enable(system, ledger)
    ledger.record("dual_writes_proven", links=0, seconds=0)
    plan(system, ledger)
    assert first_line(viewer)["topic"] == "Running"

    system.postgres.execute("UPDATE pdi2_migration.event SET at = at - interval '61 s'")
    system.postgres.execute("UPDATE pdi2_migration.run SET started_at = started_at - interval '61 s'")
    told = first_line(viewer)
    assert (told["tone"], told["topic"]) == ("warn", "Nothing was copied or verified for a minute")
    assert told["text"].endswith("But no row has been copied and no team verified since")
    assert told["until"] == viewer.get("/status").json()["steps"][2]["at"], "since the plan"

    copy_team(ledger, system.warehouse(), 7)
    assert first_line(viewer)["topic"] == "Running"


def test_the_lag_is_what_the_run_last_measured(system: System, viewer: Visitor, running: str) -> None:
    ledger = system.ledger(f"{FILL} {running}")
    add_teams(system, 7)
    enable(system, ledger)
    writer = system.writer()
    writer.create(7, "id")
    writer.flush()
    assert viewer.get("/status").json()["lag"] is None
    plan(system, ledger)
    copy_team(ledger, system.warehouse(), 7)

    measured = viewer.get("/status").json()["lag"]
    assert measured["waiting"] is None
    assert measured["seconds"] < 1
    assert measured["at"] > viewer.get("/status").json()["run"]["started_at"]


def test_a_wait_that_a_person_may_have_to_end_is_in_the_first_line(
    system: System, viewer: Visitor, running: str
) -> None:
    def topic() -> str:
        return first_line(viewer)["topic"]

    ledger = system.ledger(f"{FILL} {running}")
    many_ids(system, 500)
    enable(system, ledger)
    ledger.record("dual_writes_watched", until=0, message="No miss so far.", why=None)
    assert topic() == "Running"
    ledger.record("dual_writes_watched", until=0, message="2 links reached person_distinct_id alone.", why="missed")
    assert topic() == "It waits"
    ledger.record("dual_writes_proven", links=0, seconds=0)
    plan(system, ledger)
    ledger.start_copy([7])
    ledger.record("copy_waits", team_id=7, reason="only 0.1 GB of the disks are free")
    told = first_line(viewer)
    assert (told["tone"], told["runbook"]["about"]) == ("warn", "It waits")
    copy_and_verify(system, ledger, 7)
    assert topic() == "Running"
    gate.certify(ledger, system.warehouse(), NO_WAIT)
    ledger.record("switch_put_off", reason="ClickHouse is still carrying out 1 mutation of person_distinct_id2.")
    assert topic() == "It waits"
    ledger.record("switch_put_off", reason=None)
    assert topic() == "Running"
    assert viewer.get("/status").json()["waits"] == []
    [last, *_] = viewer.get("/events", milestones=False).json()["lines"]
    assert last["text"] == "The switch is no longer put off."


# How far


def test_the_share_is_known_from_the_plan_on_and_whole_once_all_is_verified(
    system: System, viewer: Visitor, ledger: Ledger
) -> None:
    """The progress in PostHog's row follows the same figure, but only the switch sets it to 100."""
    many_ids(system, 500)
    many_ids(system, 20, team_id=8)
    seen: list[tuple[float | None, int, float | None]] = []

    def look() -> None:
        told = viewer.get("/status").json()
        seen.append((told["share"], told["switch"]["progress"], told["seconds_left"]))

    enable(system, ledger)
    look()
    plan(system, ledger)
    look()
    copy_team(ledger, system.warehouse(), 7)
    look()
    copy_team(ledger, system.warehouse(), 8)
    look()
    copy_and_verify(system, ledger, 7)
    look()
    copy_and_verify(system, ledger, 8)
    look()

    shares = [share for share, _, _ in seen]
    assert shares[:2] == [None, 0]
    assert shares[2:] == pytest.approx([COPY_SHARE * 501 / 522, COPY_SHARE, (501 + COPY_SHARE * 21) / 522, 1])
    assert [row for _, row, _ in seen[1:]] == [int(99 * share) for share in shares[1:] if share is not None]
    left = [left for _, _, left in seen]
    assert left[:4] == [None] * 4, "nothing was verified yet, so nobody knows"
    assert left[4] is not None
    assert left[5] is None


def test_the_time_left_includes_the_time_that_airflow_takes_to_start_tasks(
    system: System, viewer: Visitor, ledger: Ledger
) -> None:
    """Half of the work took a second or two of the two minutes since the plan."""
    many_ids(system, 500)
    many_ids(system, 500, team_id=8)
    enable(system, ledger)
    plan(system, ledger)
    for table, column in (("event", "at"), ("run", "started_at")):
        system.postgres.execute(f"UPDATE pdi2_migration.{table} SET {column} = {column} - interval '2 minutes'")
    copy_and_verify(system, ledger, 7)

    seen = viewer.get("/status").json()

    assert seen["share"] == pytest.approx(0.5)
    assert seen["seconds_left"] == pytest.approx(120, rel=0.25)


def test_the_time_left_counts_the_teams_that_are_left_however_small(
    system: System, viewer: Visitor, ledger: Ledger
) -> None:
    """One team has nearly all rows. The others took 10 s each, which is what Airflow's tasks take."""
    enable(system, ledger)
    ledger.plan({1: 1_000_000, **{team_id: 10 + team_id for team_id in range(2, 22)}})
    ledger.record("planned", teams=21, rows=1_000_430, verified_before=0)
    system.postgres.execute(
        """
        UPDATE pdi2_migration.run SET started_at = now() - interval '200 s';
        UPDATE pdi2_migration.event SET at = now() - interval '200 s';
        UPDATE pdi2_migration.team
        SET status = 'verified', verified_at = now() - interval '10 s' * (11 - team_id), copied_at = now()
        WHERE team_id <= 11;
        INSERT INTO pdi2_migration.slice (team_id, lower, rows_copied, seconds, finished_at)
        SELECT team_id, '', rows_source, 1, verified_at FROM pdi2_migration.team WHERE status = 'verified'
        """
    )

    assert viewer.get("/status").json()["seconds_left"] == pytest.approx(100, rel=0.1)
    system.postgres.execute("UPDATE pdi2_migration.team SET rows_source = 1 WHERE team_id > 1")
    assert viewer.get("/status").json()["seconds_left"] == pytest.approx(100, rel=0.1), "teams of the same size"
    system.postgres.execute("UPDATE pdi2_migration.team SET status = 'copied' WHERE team_id BETWEEN 4 AND 11")
    assert viewer.get("/status").json()["seconds_left"] is None, "the rows say a second or two for 18 teams"
    system.postgres.execute("UPDATE pdi2_migration.team SET rows_source = 1000000")
    system.postgres.execute("UPDATE pdi2_migration.slice SET rows_copied = 1000000")
    all_was_earlier(system, "2 hours")
    assert viewer.get("/status").json()["seconds_left"] > 3600, "of large teams, the rows say enough"


def all_was_earlier(system: System, interval: str) -> None:
    for table, columns in {
        "event": ["at"],
        "run": ["started_at"],
        "slice": ["finished_at"],
        "team": ["copied_at", "verified_at"],
    }.items():
        for column in columns:
            system.postgres.execute(f"UPDATE pdi2_migration.{table} SET {column} = {column} - interval '{interval}'")


def test_while_nothing_ends_for_minutes_the_time_left_goes_by_the_whole_run_and_a_pause_shows_no_old_speed(
    system: System, viewer: Visitor, ledger: Ledger
) -> None:
    """One large team may be compared for longer than the speeds look back."""
    many_ids(system, 500)
    many_ids(system, 500, team_id=8)
    enable(system, ledger)
    plan(system, ledger)
    copy_and_verify(system, ledger, 7)
    all_was_earlier(system, "10 minutes")

    seen = viewer.get("/status").json()
    assert seen["speed"] == {"copied": 0, "verified": 0}
    assert seen["seconds_left"] == pytest.approx(600, rel=0.25)

    ledger.record("paused")
    seen = viewer.get("/status").json()
    assert seen["speed"] == {"copied": 0, "verified": 0}
    assert seen["seconds_left"] is None


def test_the_time_left_of_a_run_that_is_cleared_the_next_morning_does_not_count_the_night(
    system: System, viewer: Visitor, running: str
) -> None:
    ledger = system.ledger(f"{FILL} {running}")
    for team_id in (7, 8, 9):
        many_ids(system, 500, team_id=team_id)
    enable(system, ledger)
    plan(system, ledger)
    copy_and_verify(system, ledger, 7)
    all_was_earlier(system, "10 hours")

    def cleared(ago: timedelta) -> None:
        with create_session() as session:
            facts = {"clear_number": 1, "queued_at": datetime.now(UTC) - ago}
            session.query(DagRun).filter_by(run_id=running).update(facts)

    cleared(timedelta(hours=11))
    assert viewer.get("/status").json()["seconds_left"] == pytest.approx(20 * 3600, rel=0.1), "before its plan"
    cleared(timedelta(seconds=60))
    assert viewer.get("/status").json()["seconds_left"] is None
    copy_and_verify(system, ledger, 8)
    assert viewer.get("/status").json()["seconds_left"] == pytest.approx(60, rel=0.25)


def test_a_team_that_fails_after_the_certificate_leaves_its_step_undone(
    system: System, viewer: Visitor, running: str
) -> None:
    def states() -> list[str]:
        steps = {step["task"]: step["state"] for step in viewer.get("/status").json()["steps"]}
        return [steps["team.copy"], steps["team.verify"], steps["certify"]]

    ledger = system.ledger(f"{FILL} {running}")
    many_ids(system, 500)
    migrate_together(system, ledger)
    gate.certify(ledger, system.warehouse(), NO_WAIT)
    assert states() == ["done", "done", "done"]

    ledger.record("task_failed", task="team.verify", error="the disk is full")
    ledger.set_failed([7], "the disk is full")
    assert states() == ["now", "now", "done"]


def test_teams_without_rows_are_not_done_before_they_are_verified(
    system: System, viewer: Visitor, ledger: Ledger
) -> None:
    enable(system, ledger)
    ledger.plan({7: 0})
    ledger.record("planned", teams=1, rows=0, verified_before=0)

    assert viewer.get("/status").json()["share"] == 0


def test_a_run_that_has_ended_stands_still(system: System, viewer: Visitor, ledger: Ledger) -> None:
    many_ids(system, 500)
    many_ids(system, 20, team_id=8)
    enable(system, ledger)
    plan(system, ledger)
    copy_and_verify(system, ledger, 7)
    ledger.end_run("failed")
    system.postgres.execute(
        """
        UPDATE pdi2_migration.run
        SET started_at = started_at - interval '1 hour', ended_at = ended_at - interval '1 hour';
        UPDATE pdi2_migration.slice SET finished_at = finished_at - interval '1 hour', seconds = 1;
        UPDATE pdi2_migration.team SET verified_at = verified_at - interval '1 hour';
        UPDATE pdi2_migration.event SET at = at - interval '1 hour';
        """
    )

    seen = [viewer.get("/status").json() for _ in range(2)]

    assert seen[0]["speed"]["copied"] == 100, "500 rows in five seconds, the least that counts"
    assert seen[0]["seconds_left"] is None
    assert len(seen[0]["throughput"]["copied"]["rows_per_second"]) <= 3, "up to the last row, not up to now"
    for key in ("speed", "throughput", "share", "last"):
        assert seen[0][key] == seen[1][key]


def test_a_peak_does_not_depend_on_how_wide_the_bars_are(system: System, viewer: Visitor, ledger: Ledger) -> None:
    enable(system, ledger)
    ledger.plan({7: 1_000_000})
    ledger.record("planned", teams=1, rows=1_000_000, verified_before=0)
    columns = "team_id, lower, rows_copied, seconds, finished_at"
    insert = f"INSERT INTO pdi2_migration.slice ({columns}) VALUES (7, %s, %s, %s, %s)"
    now = datetime.now(UTC)
    system.postgres.execute("UPDATE pdi2_migration.run SET started_at = %s", [now - timedelta(days=1)])
    system.postgres.execute("UPDATE pdi2_migration.event SET at = %s", [now - timedelta(days=1)])

    def chart() -> dict[str, Any]:
        return viewer.get("/status").json()["throughput"]

    begun = now - timedelta(seconds=40)
    for number in range(4):  # 10 s each, one after the other, at 1,000 rows per second; the third is ten times as fast
        rows = 100_000 if number == 2 else 10_000
        finished_at = begun + timedelta(seconds=10 * (number + 1))
        system.postgres.execute(insert, [bytes([number]), rows, 10, finished_at])
    narrow = chart()
    system.postgres.execute(insert, [b"long ago", 40_000, 10, now - timedelta(hours=20)])
    wide = chart()

    assert narrow["width"] < wide["width"]
    assert narrow["copied"]["peak"] == pytest.approx(10_000, rel=0.01)
    assert wide["copied"]["peak"] == pytest.approx(10_000, rel=0.55), "windows begin elsewhere"
    assert wide["copied"]["peak"] > 2 * max(wide["copied"]["rows_per_second"])
    assert progress.WINDOW_SECONDS == 5


# What is wrong


def test_failures_are_grouped_by_cause_and_the_gates_summary_is_last(
    system: System, viewer: Visitor, ledger: Ledger
) -> None:
    enable(system, ledger)
    ledger.plan(dict.fromkeys(range(1, 40), 10))
    for team_id in range(1, 37):
        error = f"Team {team_id} cannot be copied: ClickHouse error 60 (UNKNOWN_TABLE): no table {team_id}."
        ledger.set_failed([team_id], error)
    for team_id in (37, 38):
        ledger.set_failed(
            [team_id], f"person_distinct_id2 still differs from Postgres after the repair.\nTeam {team_id}: 4 ids."
        )
    ledger.record("task_failed", task="team.copy", error="ClickHouse error 202 (TOO_MANY): passed since")
    ledger.record("task_failed", task="certify", error="38 of 39 teams are not verified, so nothing is switched")
    ledger.end_run("failed")

    seen = viewer.get("/status").json()["failures"]

    assert [(one["cause"], one["teams"], one["task"]) for one in seen] == [
        ("ClickHouse error 60 (UNKNOWN_TABLE)", 36, None),
        ("person_distinct_id2 still differs from Postgres after the repair.", 2, None),
        ("N of N teams are not verified, so nothing is switched", 0, "certify"),
    ]
    assert seen[0]["runbook"]["about"] == "`cannot be copied: …`"


def test_a_run_shows_its_own_failed_teams_and_not_those_of_the_run_before(
    system: System, viewer: Visitor, ledger: Ledger
) -> None:
    def failures() -> list[str]:
        return [one["cause"] for one in viewer.get("/status").json()["failures"]]

    enable(system, ledger)
    ledger.plan({7: 10, 8: 10})
    ledger.set_failed([7], "the disk is full")
    assert failures() == ["the disk is full"]
    ledger.end_run("failed")
    assert failures() == ["the disk is full"]
    after = system.ledger(f"{FILL} the next")
    enable(system, after)
    assert failures() == []
    after.plan({7: 10, 8: 10})
    after.set_failed([7], "the disk is full again")
    assert failures() == ["the disk is full again"]


@pytest.mark.parametrize(
    ("outcome", "told"), [("completed", []), ("rejected", []), ("failed", ["ClickHouse error 241 (MEMORY)"])]
)
def test_a_passing_failure_is_not_shown_once_the_run_has_ended_well(
    system: System, viewer: Visitor, ledger: Ledger, outcome: str, told: list[str]
) -> None:
    many_ids(system, 500)
    migrate_together(system, ledger)
    ledger.record("task_failed", task="team.copy", error="ClickHouse error 241 (MEMORY): a retry got through")
    ledger.end_run(outcome)

    assert [one["cause"] for one in viewer.get("/status").json()["failures"]] == told


def test_the_step_of_a_rejected_switch_says_so(viewer: Visitor, ledger: Ledger, system: System) -> None:
    enable(system, ledger, Settings(require_approval=True))
    ledger.end_run("rejected")

    states = {step["task"]: step["state"] for step in viewer.get("/status").json()["steps"]}
    assert (states["approve"], states["switch_reads"]) == ("rejected", "stopped")


def test_an_older_run_is_shown_by_itself(system: System, viewer: Visitor, ledger: Ledger) -> None:
    """The ledger now has a newer run's figures for its teams. They are not shown as its own."""
    enable(system, ledger)
    ledger.record("task_failed", task="plan_teams", error="no such table")
    ledger.end_run("failed")
    migrate_together(system, system.ledger(f"{FILL} the next"))

    seen = viewer.get("/status", dag=FILL, run="a run that Airflow has forgotten").json()

    assert seen["phase"] == "Failed: reads stay on the old table"
    assert [one["cause"] for one in seen["failures"]] == ["no such table"]
    assert "rows" not in seen
    told = seen["verdict"]
    assert told["topic"] == "The tab of another run", "what to do about the newest run is on the page, not here"
    assert told["text"].endswith("nothing is lost. Another run followed this one.")
    assert viewer.get("/status", dag=FILL, run="nobody's").status_code == 404


@pytest.fixture
def in_airflow(running: str) -> str:
    """The id of a run that Airflow knows with its tasks, of which the first has ended well."""
    with create_session() as session:
        session.add_all(TaskInstance(task, None, run_id=running) for task in dags()[FILL].tasks)
    set_tasks(running, "preflight", state="success")
    return running


def set_run(run_id: str, **columns: Any) -> None:
    with create_session() as session:
        session.query(DagRun).filter_by(run_id=run_id).update(columns)


def set_tasks(run_id: str, *task_ids: str, **columns: Any) -> None:
    """All tasks of the run if none is named."""
    with create_session() as session:
        of_run = session.query(TaskInstance).filter_by(run_id=run_id)
        (of_run.filter(TaskInstance.task_id.in_(task_ids)) if task_ids else of_run).update(columns)


def _up_for_retry(run_id: str, ended: datetime, reason: str | None = None) -> None:
    """The states and columns that Airflow 3.3's execution API writes for RetryDecision.retry, and before as far."""
    with create_session() as session:
        task = session.query(TaskInstance).filter_by(run_id=run_id, task_id="prove_dual_writes").one()
        number = max(2, task.try_number + 1)
        task.state, task.try_number, task.max_tries, task.end_date = "up_for_retry", number, 6, ended
        if reason:
            task.retry_reason, task.retry_delay_override = reason, 30.0
        task.prepare_db_for_next_try(session)


def test_old_writes_that_wait_say_why(system: System, viewer: Visitor, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    gate.switch_reads(ledger, system.warehouse(), NO_WAIT)
    ledger.record("old_writes_put_off", reason="1 link reached person_distinct_id alone.")
    told = first_line(viewer)
    assert (told["tone"], told["topic"]) == ("bad", "Old writes wait")
    assert "a rollback is possible" in told["text"]
    assert told["do"].startswith("1 link reached")
    assert told["runbook"]["about"] == "Old writes wait"
    ledger.record("old_writes_put_off", reason=None)
    assert first_line(viewer)["topic"] == "Reads are switched, both tables are written"


@pytest.mark.slow
class TestAirflow:
    """What only Airflow knows, from real runs in it or, where its columns say it all, from rows of its models."""

    def test_a_run_of_another_dag_is_not_shown(self, system: System, viewer: Visitor) -> None:
        """Whoever sees the page may read our DAGs, and perhaps no other."""
        with create_session() as session:
            session.add(DagRun("somebody_elses", "its_run", run_type="manual", state="running"))
        assert viewer.get("/status", dag="somebody_elses", run="its_run").status_code == 404

    def test_a_dry_run_shows_its_plan_and_writes_nothing(self, system: System, viewer: Visitor) -> None:
        many_ids(system, 500)

        run = system.run(dry_run=True)

        seen = viewer.get("/status").json()
        assert seen["run"] is None
        assert (seen["other"]["kind"], seen["other"]["outcome"]) == ("dry run", "planned: nothing was written")
        assert "500 rows to copy" in seen["other"]["plan"]
        assert (seen["verdict"]["topic"], seen["verdict"]["tone"]) == ("A dry run has planned", "good")
        assert "team_ids" in seen["verdict"]["do"]
        assert viewer.get("/status", dag=FILL, run=run.run_id).json()["other"] == seen["other"]
        assert not system.ledger().exists()
        assert [line["outcome"] for line in viewer.get("/runs").json()["lines"]] == ["planned: nothing was written"]

    def test_the_tab_of_an_older_dry_run_does_not_speak_of_what_is_listed_on_another_tab(
        self, system: System, viewer: Visitor
    ) -> None:
        planned = system.run(dry_run=True)
        refused = system.run(team_ids=[404])

        older, newer = (first_line(viewer, dag=FILL, run=one.run_id) for one in (planned, refused))

        assert (older["topic"], newer["topic"]) == ("The tab of another run", "A run could not begin")
        assert older["text"].endswith("This run has changed nothing.")
        assert newer == first_line(viewer)

    @pytest.mark.parametrize("key", ["plan", "problems", "old_writes_end"])
    def test_what_airflow_keeps_in_object_storage_is_not_shown_as_its_address(
        self, system: System, viewer: Visitor, key: str
    ) -> None:
        """What XComObjectStorageBackend leaves in the database for a value above its threshold."""
        run = system.run(dry_run=True)
        with create_session() as session:
            kept = session.query(XComModel).filter_by(run_id=run.run_id, key="plan").one()
            kept.key, kept.value = key, "s3://bucket/xcom/fill_person_distinct_id2/plan"

        seen = viewer.get("/status")
        assert seen.status_code == 200
        assert "s3://" not in seen.text
        assert ("keeps the text in object storage" in seen.text) is (key != "old_writes_end")

    @pytest.mark.parametrize("stop_old_writes", [True, False])
    def test_the_tab_of_a_dry_run_speaks_of_that_run_while_another_one_migrates(
        self, system: System, viewer: Visitor, ledger: Ledger, running: str, stop_old_writes: bool
    ) -> None:
        settings = Settings(settle_seconds=0, read_cache_seconds=900, stop_old_writes=stop_old_writes)
        many_ids(system, 500)
        set_run(running, state="success", conf={"dry_run": True})
        migrate_together(system, ledger, settings)

        told = first_line(viewer, dag=FILL, run=running)
        assert told["text"].endswith("nothing is lost. This run has changed nothing.")
        assert "page Migration" in told["do"]
        gate.switch_reads(ledger, system.warehouse(), settings)
        told = first_line(viewer, dag=FILL, run=running)
        assert told == first_line(viewer)
        assert bool(told["until"]) is stop_old_writes
        rollback.roll_back(system.ledger(f"{ROLLBACK} one"))
        assert first_line(viewer, dag=FILL, run=running)["topic"] == "Rolled back"

    def test_an_audit_with_repair_is_not_shown_as_a_run_that_changed_nothing(
        self, system: System, viewer: Visitor, ledger: Ledger
    ) -> None:
        many_ids(system, 500)
        migrate_together(system, ledger)
        with create_session() as session:
            for repair in (True, False):
                conf = {"repair": repair}
                session.add(DagRun(AUDIT, f"repair-{repair}", run_type="manual", state="success", conf=conf))

        for repair in (True, False):
            seen = viewer.get("/status", dag=AUDIT, run=f"repair-{repair}").json()
            assert seen["airflow"]["repairs"] is repair
            assert ("changed nothing" in seen["verdict"]["text"]) is not repair

    def test_a_refused_run_shows_its_reasons_and_not_the_old_failure(
        self, system: System, viewer: Visitor, ledger: Ledger
    ) -> None:
        enable(system, ledger)
        ledger.end_run("failed")
        system.clickhouse.command("DROP TABLE person_distinct_id2")

        system.run()

        seen = viewer.get("/status").json()
        assert seen["other"]["outcome"] == "refused: nothing was changed"
        assert any("person_distinct_id2" in problem for problem in seen["other"]["problems"])
        assert (seen["verdict"]["topic"], seen["verdict"]["tone"]) == ("A run could not begin", "bad")
        assert seen["verdict"]["do"].startswith("Remove what is listed below")
        listed = [(line["kind"], line["outcome"]) for line in viewer.get("/runs").json()["lines"]]
        assert listed[0] == ("migration", "refused: nothing was changed")

    def test_a_refused_rollback_and_an_audit_that_found_drift_are_listed_as_such(
        self, system: System, viewer: Visitor
    ) -> None:
        many_ids(system, 500)
        earlier_run(system)
        insert_truth(system, BOB, 0, "lost")

        system.run(ROLLBACK)
        audit = system.run(AUDIT, in_flight_seconds=0)

        listed = [(line["kind"], line["outcome"]) for line in viewer.get("/runs").json()["lines"]]
        assert listed[:2] == [("audit", "drift found"), ("rollback", "refused: nothing was changed")]
        other = viewer.get("/status", dag=AUDIT, run=audit.run_id).json()["other"]
        assert "Ids that drifted from Postgres: 1." in other["message"]

        with create_session() as session:  # somebody marks them, and an audit that has yet to compare anything
            session.query(DagRun).filter(DagRun.dag_id.in_([ROLLBACK, AUDIT])).update({"state": "success"})
            session.add(DagRun(AUDIT, "marked", run_type="manual", state="success", conf={}))
        marked = {line["run_id"]: line["outcome"] for line in viewer.get("/runs").json()["lines"]}
        assert (marked.pop("marked"), marked.pop(audit.run_id)) == ("left no report", "drift found")
        assert "refused: nothing was changed" in marked.values()

    def test_an_audit_that_compared_nothing_is_not_listed_as_without_drift(
        self, system: System, viewer: Visitor
    ) -> None:
        """As before the first migration, when no team is verified."""
        system.run(AUDIT)

        assert [line["outcome"] for line in viewer.get("/runs").json()["lines"]] == ["nothing to compare"]
        assert viewer.get("/events").json()["lines"][0]["text"] == "An audit ended: there was no team to compare."

    def test_the_certificate_is_the_one_that_was_written(self, system: System, viewer: Visitor) -> None:
        many_ids(system, 500)
        run = system.run(stop_old_writes=False)

        [line] = viewer.get("/runs").json()["lines"]
        page = viewer.get(f"/certificates/{line['certificate']}")
        text = viewer.get(f"/certificates/{line['certificate']}", form="json", download=True)

        assert (line["kind"], line["outcome"]) == ("migration", "completed")
        written = system.ledger().latest("certificate_written")
        assert hashlib.sha256(text.content).hexdigest() == written["json_sha256"]
        assert json.loads(text.text)["run"]["airflow_run"] == f"{FILL} {run.run_id}"
        assert text.headers["Content-Disposition"] == f'attachment; filename="{written["files"][0]}"'
        assert written["json_sha256"] in page.text
        assert viewer.get("/certificates/999").status_code == 404

    @explained
    def test_retries_are_shown_with_their_cause_and_when_the_next_is_due(
        self, system: System, viewer: Visitor, in_airflow: str
    ) -> None:
        enable(system, system.ledger(f"{FILL} {in_airflow}"))
        ended = datetime.now(UTC).replace(microsecond=0)
        _up_for_retry(in_airflow, ended, AWAY)

        seen = viewer.get("/status").json()

        retrying = seen["airflow"]["retrying"]
        assert (retrying["tasks"], retrying["next_tries"], retrying["tries"]) == (1, [3, 3], 7)
        assert datetime.fromisoformat(retrying["due"]) == ended + timedelta(seconds=30)
        assert retrying["causes"] == [{"cause": "ClickHouse does not answer", "tasks": 1}]
        assert seen["airflow"]["unanswered"] == "ClickHouse"
        assert datetime.fromisoformat(seen["airflow"]["unanswered_since"]) == ended
        assert seen["verdict"]["topic"] == "An engine does not answer"
        assert "If it is back already, the next try finds it" in seen["verdict"]["do"]

    @explained
    def test_an_engine_that_answered_others_since_is_not_shown_as_away(
        self, system: System, viewer: Visitor, in_airflow: str
    ) -> None:
        ledger = system.ledger(f"{FILL} {in_airflow}")
        many_ids(system, 500)
        enable(system, ledger)
        plan(system, ledger)
        _up_for_retry(in_airflow, datetime.now(UTC) - timedelta(minutes=1), AWAY)
        away = first_line(viewer)["topic"]
        copy_team(ledger, system.warehouse(), 7)
        answered = first_line(viewer)["topic"]
        _up_for_retry(in_airflow, datetime.now(UTC) + timedelta(seconds=1), AWAY)
        away_again = first_line(viewer)["topic"]

        assert answered == "Tasks are up for retry"
        assert away == away_again == "An engine does not answer"

    @explained
    def test_a_postgres_that_this_page_has_just_read_is_not_shown_as_away(
        self, system: System, viewer: Visitor, in_airflow: str
    ) -> None:
        """It is back, and the tasks have yet to be tried again."""
        enable(system, system.ledger(f"{FILL} {in_airflow}"))
        _up_for_retry(in_airflow, datetime.now(UTC), AWAY.replace("ClickHouse", "Postgres"))

        seen = viewer.get("/status").json()

        assert (seen["verdict"]["topic"], seen["airflow"]["unanswered"]) == ("Tasks are up for retry", None)
        assert seen["airflow"]["retrying"]["causes"] == [{"cause": "Postgres does not answer", "tasks": 1}]

    def test_a_retry_whose_cause_airflow_does_not_know_is_shown(
        self, system: System, viewer: Visitor, in_airflow: str
    ) -> None:
        """As after a kill, and always before Airflow 3.3."""
        enable(system, system.ledger(f"{FILL} {in_airflow}"))
        _up_for_retry(in_airflow, datetime.now(UTC))

        seen = viewer.get("/status").json()

        assert seen["verdict"]["topic"] == "Tasks are up for retry"
        retrying = seen["airflow"]["retrying"]
        assert (retrying["next_tries"], retrying["due"], retrying["reason"]) == ([3, 3], None, None)
        assert retrying["causes"] == [{"cause": UNEXPLAINED, "tasks": 1}]

    def test_a_team_that_failed_for_good_is_in_the_first_line_while_the_run_goes_on(
        self, system: System, viewer: Visitor, in_airflow: str
    ) -> None:
        ledger = system.ledger(f"{FILL} {in_airflow}")
        enable(system, ledger)
        ledger.plan({7: 10, 8: 10})
        ledger.set_failed([7], "the disk is full")
        topics = []
        for state in ("failed", None):  # None: somebody cleared it
            set_tasks(in_airflow, "team.copy", state=state)
            topics.append(first_line(viewer)["topic"])

        assert topics[0] == "Something failed, the rest goes on"
        assert topics[1] != topics[0]

    def test_tasks_that_failed_before_they_reached_the_ledger_are_named(
        self, system: System, viewer: Visitor, in_airflow: str
    ) -> None:
        """They were killed, or had no Postgres. The gate's own failure only counts the teams."""
        ledger = system.ledger(f"{FILL} {in_airflow}")
        enable(system, ledger)
        set_run(in_airflow, state="failed")
        set_tasks(in_airflow, "team.copy", "certify", state="failed")

        def failures() -> list[str]:
            return sorted(one["task"] for one in viewer.get("/status").json()["failures"])

        assert failures() == ["certify (1 task)", "team.copy (1 task)"]
        one, *_ = viewer.get("/status").json()["failures"]
        assert (one["cause"][:6], one["runbook"]["about"]) == ("failed", "`could not say why in the ledger`")
        ledger.record("task_failed", task="certify", error="1 of 1 team is not verified, so reads stay")
        assert failures() == ["certify", "team.copy (1 task)"]
        ledger.record("task_failed", task="team.copy", error="no space left")
        assert failures() == ["certify", "team.copy"]

    @pytest.mark.parametrize("owns", [True, False])
    def test_a_run_of_which_airflow_begins_no_task_is_shown_as_still(
        self, system: System, viewer: Visitor, in_airflow: str, owns: bool
    ) -> None:
        """The scheduler or the workers are down, or no slot is free. Nobody records that."""
        if owns:
            enable(system, system.ledger(f"{FILL} {in_airflow}"))
        still = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=6)

        def told(state: str, since: datetime) -> dict[str, Any]:
            set_tasks(in_airflow, "team.copy", state=state)
            set_tasks(in_airflow, updated_at=since)
            return first_line(viewer)

        stuck = told("scheduled", still)
        assert (stuck["tone"], stuck["topic"]) == ("warn", "Airflow begins no task")
        assert datetime.fromisoformat(stuck["until"]) == still
        assert stuck["after"].endswith("1 scheduled, 0 queued.")
        fine = {told("scheduled", datetime.now(UTC))["topic"], told("running", still)["topic"]}
        assert fine == {"Running" if owns else "A run is checking"}

    def test_a_scheduler_without_a_sign_of_life_is_told(self, system: System, viewer: Visitor, in_airflow: str) -> None:
        enable(system, system.ledger(f"{FILL} {in_airflow}"))
        beat = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=2)
        job = Job(job_type="SchedulerJob", state="running", latest_heartbeat=beat)
        with create_session() as session:
            session.add(job)
        try:
            told = first_line(viewer)
        finally:
            with create_session() as session:
                session.delete(job)

        assert (told["tone"], told["topic"]) == ("bad", "Airflow begins no task")
        assert datetime.fromisoformat(told["until"]) == beat

    def test_a_run_that_waits_for_its_turn_does_not_stand_still(
        self, system: System, viewer: Visitor, in_airflow: str
    ) -> None:
        enable(system, system.ledger(f"{FILL} {in_airflow}"))
        with create_session() as session:
            session.add(DagRun(FILL, "the_next", run_type="manual", state="queued"))
            session.flush()
            session.add_all(TaskInstance(task, None, run_id="the_next") for task in dags()[FILL].tasks)
        set_tasks("the_next", updated_at=datetime.now(UTC) - timedelta(minutes=6))

        assert first_line(viewer)["topic"] == "Running"

    @pytest.mark.parametrize("owns", [True, False])
    def test_a_dag_that_is_paused_in_airflow_is_shown_as_paused(
        self, system: System, viewer: Visitor, in_airflow: str, owns: bool
    ) -> None:
        """A run that was triggered by API stays queued then, for ever."""
        DagBundlesManager().sync_bundles_to_db()
        if owns:
            enable(system, system.ledger(f"{FILL} {in_airflow}"))
        set_run(in_airflow, state="queued")
        topics = []
        for paused in (True, False):
            with create_session() as session:
                session.merge(DagModel(dag_id=FILL, bundle_name="dags-folder", is_paused=paused))
            topics.append(first_line(viewer)["topic"])

        assert topics == ["The DAG is paused in Airflow", "Running" if owns else "A run is checking"]

    def test_a_missing_pool_is_shown_first_where_copies_would_need_it(
        self, system: System, viewer: Visitor, running: str
    ) -> None:
        many_ids(system, 500)
        ledger = system.ledger(f"{FILL} {running}")
        enable(system, ledger)
        ledger.record("dual_writes_proven", links=0, seconds=0)
        plan(system, ledger)
        seen = []
        for there in (True, False):
            with create_session() as session:
                session.query(Pool).filter_by(pool=POOL).delete()
                if there:
                    session.add(Pool(pool=POOL, slots=2, include_deferred=False))
            seen.append(viewer.get("/status").json())

        assert [one["airflow"]["pool"] for one in seen] == [{"slots": 2}, None]
        assert [one["verdict"]["topic"] for one in seen] == ["Running", "The pool of the copies does not exist"]

    def test_old_writes_that_nothing_will_end_have_no_time(
        self, system: System, viewer: Visitor, in_airflow: str
    ) -> None:
        from airflow.dag_processing.bundles.manager import DagBundlesManager
        from airflow.models.dag import DagModel
        from airflow.utils.session import create_session

        DagBundlesManager().sync_bundles_to_db()
        settings = Settings(settle_seconds=0, read_cache_seconds=900)
        ledger = system.ledger(f"{FILL} {in_airflow}")
        migrate_together(system, ledger, settings)
        gate.switch_reads(ledger, system.warehouse(), settings)
        topics = []
        for paused in (True, False):
            with create_session() as session:
                session.merge(DagModel(dag_id=FILL, bundle_name="dags-folder", is_paused=paused))
            topics.append(first_line(viewer)["topic"])
        assert topics == ["The DAG is paused in Airflow", "Reads are switched, both tables are written"]
        assert "until old writes stop, at" not in reporting.close_run(ledger, settings)["way_back"]

    def test_a_run_that_was_cleared_as_a_whole_is_listed_by_its_last_end(
        self, system: System, viewer: Visitor, running: str
    ) -> None:
        ledger = system.ledger(f"{FILL} {running}")
        for number, outcome in enumerate(("failed", "completed"), 1):
            enable(system, ledger)
            ledger.keep_certificate({f"{number}.json": "{}", f"{number}.html": "<p>"})
            ledger.end_run(outcome)
        set_run(running, state="success")
        [line] = viewer.get("/runs").json()["lines"]
        assert (line["outcome"], line["certificate"]) == ("completed", 2)

    def test_a_run_that_was_triggered_together_with_one_that_failed_is_shown_once_it_checks(
        self, system: System, viewer: Visitor, running: str
    ) -> None:
        from airflow.models.dagrun import DagRun
        from airflow.utils.session import create_session

        ledger = system.ledger(f"{FILL} {running}")
        with create_session() as session:
            session.add(DagRun(FILL, "second", run_type="manual", state="queued"))
        enable(system, ledger)
        ledger.end_run("failed")
        now = datetime.now(UTC)
        set_run(running, state="failed", queued_at=now - timedelta(minutes=10), start_date=now - timedelta(minutes=10))
        set_run("second", state="running", queued_at=now - timedelta(minutes=9), start_date=now + timedelta(seconds=1))
        assert first_line(viewer)["topic"] == "A run is checking"

    def test_a_reported_run_whose_failed_tasks_are_cleared_goes_on(
        self, system: System, viewer: Visitor, admin: Visitor
    ) -> None:
        """It copies again, so it is shown as running, and can be paused."""
        Pool.create_or_update_pool(POOL, slots=2, description="", include_deferred=False)
        many_ids(system, 500)
        system.clickhouse.command("ALTER TABLE person_distinct_id2 ADD CONSTRAINT refused CHECK version >= 0")
        run = system.run()
        assert viewer.get("/status").json()["phase"] == "Failed: reads stay on the old table"
        assert admin.post("/pause").status_code == 409

        cleared = admin.client.post(
            f"/api/v2/dags/{FILL}/clearTaskInstances",
            json={"dry_run": False, "dag_run_id": run.run_id, "only_failed": True},
        )

        assert cleared.is_success, cleared.text
        seen = viewer.get("/status").json()
        assert seen["alive"]
        assert seen["phase"] == "Copying and verifying teams"
        assert (seen["run"]["outcome"], seen["run"]["ended_at"]) == (None, None)
        assert seen["verdict"]["topic"] == "Running"
        assert seen["steps"][-1]["state"] == "waiting"
        assert viewer.get("/runs").json()["lines"][0]["outcome"] == "queued: runs take turns"
        assert admin.post("/pause").status_code == 204
        assert viewer.get("/status").json()["verdict"]["topic"] == "Paused"
        set_tasks(run.run_id, *dags()[FILL].task_dict.keys() - {"report"}, state="failed")
        assert not viewer.get("/status").json()["alive"], "only its report is left"

    def test_a_run_that_only_ends_old_writes_is_shown_and_can_be_paused(
        self, system: System, viewer: Visitor, admin: Visitor
    ) -> None:
        """It owns nothing of the ledger, and what it does is irreversible."""
        many_ids(system, 500)
        earlier_run(system, stop_old_writes=False)
        run = system.run(read_cache_seconds=1)
        ended = viewer.get("/status").json()["verdict"]
        outcome = viewer.get("/runs").json()["lines"][0]["outcome"]
        set_run(run.run_id, state="running")  # as it was before its last task
        set_switch(system.postgres, WRITES, "both")
        system.postgres.execute("DELETE FROM pdi2_migration.event WHERE what = 'old_writes_stopped'")
        finished_at = system.value("SELECT finished_at FROM posthog_asyncmigration")

        for view in ({}, {"dag": FILL, "run": run.run_id}):
            seen = viewer.get("/status", **view).json()
            assert (seen["verdict"]["tone"], seen["verdict"]["text"]) == (
                "warn",
                "Readers use the new table. Old writes may stop at any moment; they were due at",
            )
            assert datetime.fromisoformat(seen["verdict"]["until"]) == finished_at + timedelta(seconds=1)
            assert seen["airflow"]["old_writes_end"] == seen["verdict"]["until"]
        assert admin.post("/pause").status_code == 204
        assert first_line(viewer)["topic"] == "Paused"
        assert viewer.get("/status", dag=FILL, run=run.run_id).json()["paused"]["actor"] == "ann"
        assert ended["topic"] == "Old writes have stopped"
        assert outcome == "old writes stopped"

    def test_a_run_that_airflow_ended_without_a_report_is_not_running(
        self, system: System, viewer: Visitor, running: str
    ) -> None:
        set_run(running, state="success")
        enable(system, system.ledger(f"{FILL} {running}"))

        seen = viewer.get("/status").json()

        assert not seen["alive"]
        assert seen["phase"] == "Stopped without a report: reads are on the old table"
        assert seen["verdict"]["topic"] == "The run failed"


# The audit log


def recorded() -> set[str]:
    """The name of every event that the package records, if the name is written out in the code."""
    found = set()
    for path in (ROOT / "plugins" / "pdi2").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "record" and node.args:
                found |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    return found


def test_every_event_has_a_sentence() -> None:
    assert len(recorded()) > 15
    assert recorded() <= telling.SENTENCES.keys()
    assert set(telling.TOLD_BY_DEFAULT) <= telling.SENTENCES.keys()


def test_the_audit_log_reads_as_sentences_and_shows_milestones_first(
    system: System, viewer: Visitor, ledger: Ledger
) -> None:
    many_ids(system, 500)
    migrate_together(system, ledger)
    gate.certify(ledger, system.warehouse(), NO_WAIT)
    gate.switch_reads(ledger, system.warehouse(), NO_WAIT)
    certificate.draw_up(ledger, reporting.close_run(ledger, NO_WAIT))
    for team_id in range(40):
        ledger.record("audited", run="an audit", team_ids=[team_id], old_differs=None)
        ledger.record("task_failed", task="team.copy", error="ClickHouse does not answer: refused.")
    ledger.record("read_times", team_id=7, ids=500, readings=5, read_old=0.12345678901234567, read_new=0.01)
    ledger.record("dual_writes_watched", until=1_800_000_000.123, message="No miss so far.", why=None)
    ledger.record("lag_measured", since=1_800_000_000.123, seconds=2.5, waiting=None)

    milestones = viewer.get("/events", limit=100).json()["lines"]
    everything = viewer.get("/events", limit=100, milestones=False).json()["lines"]

    assert "Planned 1 team with 500 rows." in [line["text"] for line in milestones]
    assert not {"audited", "read_times"} & {line["what"] for line in milestones}
    assert len(everything) > len(milestones) + 80, "an outage fails each task that runs, and again on each retry"
    for line in everything:
        assert line["text"].endswith((".", "until"))
        assert not any(raw in line["text"] for raw in ("{", "_", "1800000000", "0.1234"))
    assert {line["until"] for line in everything} - {None} == {"2027-01-15T08:00:00.123000Z"}


def test_an_event_written_by_hand_is_shown_by_its_name(system: System, viewer: Visitor, ledger: Ledger) -> None:
    enable(system, ledger)
    ledger.record("planned", by="hand")
    ledger.record("something_else", of="nobody")

    told = [line["text"] for line in viewer.get("/events", milestones=False).json()["lines"]]

    assert told[:2] == ["Something else.", "Planned."]


def test_a_missing_connection_is_named_as_that(
    system: System, viewer: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_POSTHOG_POSTGRES")

    answer = viewer.get("/status")

    assert answer.status_code == 503
    assert answer.json()["detail"].startswith("The Airflow connection posthog_postgres does not exist")


def test_a_ledger_of_an_earlier_release_is_named_as_that(system: System, viewer: Visitor, ledger: Ledger) -> None:
    enable(system, ledger)
    system.postgres.execute("DROP TABLE pdi2_migration.certificate")

    assert "of an earlier release" in viewer.get("/status").json()["detail"]
