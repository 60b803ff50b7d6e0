"""The gate before the switch, the switch, the way back, and who owns the migration."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import ENGINE, System
from pdi2.core.cluster import pressure
from pdi2.core.copy.copying import copy_team
from pdi2.core.engines.failures import BusyError, MigrationError, Reaction, WaitError, reaction
from pdi2.core.plan.preflight import PreflightError, Verdict, check, decision_against
from pdi2.core.report.certificate import for_approval
from pdi2.core.report.reporting import close_run, got_through
from pdi2.core.report.way_back import way_back
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.ownership import hold
from pdi2.core.state.settings import Settings
from pdi2.core.state.switches import ChangedElsewhereError, Switches
from pdi2.core.switch.dual_writes import DualWriteError
from pdi2.core.switch.gate import PUT_OFF, GateError, certify, switch_reads
from pdi2.core.switch.old_writes import old_writes_end
from pdi2.core.switch.rollback import RollbackError, roll_back
from pdi2.core.verify.verifying import verify_team
from stories import (
    ALICE,
    BOB,
    NO_WAIT,
    TEAM,
    Meanwhile,
    add_teams,
    copy_and_verify,
    dump,
    enable,
    end_session,
    event,
    insert_new,
    insert_old,
    insert_truth,
    merge,
    migrate_together,
    plan,
    stop_merges,
    stop_old_writes,
    two_ids_each,
    until,
    when_recorded,
)

from demo.schema import Table
from demo.switches import READS, WRITES, set_switch

TEAMS = (TEAM, TEAM + 1, TEAM + 2)
TRIAL = Settings(team_ids=(TEAM,), settle_seconds=0, read_cache_seconds=0)


@pytest.fixture
def ledger(system: System) -> Ledger:
    """Three small teams wait to be migrated."""
    two_ids_each(system, *TEAMS)
    return system.ledger()


def switch(system: System, ledger: Ledger, settings: Settings = NO_WAIT) -> None:
    switch_reads(ledger, system.warehouse(), settings)


def judge(system: System, ledger: Ledger, settings: Settings = NO_WAIT) -> dict[str, Any]:
    return certify(ledger, system.warehouse(), settings)


def events(system: System, what: str) -> int:
    query = "SELECT count(*) FROM pdi2_migration.event WHERE what = %s"
    [[count]] = system.postgres.execute(query, [what]).fetchall()
    return count


def unchanged(system: System, error: type[MigrationError], work: Callable[[], object], match: str) -> None:
    """The step is refused for good, the error says what to do, and neither database has changed."""
    before = dump(system)
    with pytest.raises(error, match=match) as refused:
        work()
    assert reaction(refused.value) is Reaction.FAIL
    assert dump(system) == before


def test_verified_teams_are_certified_and_switched(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    certificate = judge(system, ledger)
    assert (certificate["teams"], certificate["rows_source"], certificate["rows_copied"]) == (3, 6, 6)
    assert system.switches() == {"reads": "old", "writes": "both"}

    switch(system, ledger)
    assert system.status() == 2
    assert system.value("SELECT progress FROM posthog_asyncmigration") == 100
    assert system.value("SELECT finished_at > started_at FROM posthog_asyncmigration")
    assert system.switches() == {"reads": "new", "writes": "both"}
    assert events(system, "reads_switched") == 1

    stop_old_writes(system, ledger)
    assert system.switches() == {"reads": "new", "writes": "new"}
    assert (system.status(), events(system, "old_writes_stopped")) == (2, 1)


def test_a_certificate_that_is_cleared_after_the_switch_asks_nothing_of_a_newer_team(
    system: System, ledger: Ledger
) -> None:
    migrate_together(system, ledger)
    certificate = judge(system, ledger)
    switch(system, ledger)
    insert_truth(system, ALICE, 0, "id", 100)

    assert judge(system, ledger)["teams"] == certificate["teams"]


def test_progress_follows_the_verified_teams(system: System, ledger: Ledger) -> None:
    progress = "SELECT progress FROM posthog_asyncmigration"
    enable(system, ledger)
    plan(system, ledger)
    seen = [system.value(progress)]
    for team_id in TEAMS:
        copy_and_verify(system, ledger, team_id)
        seen.append(system.value(progress))
    assert seen == [0, 33, 66, 99]
    ledger.end_run("failed")
    again = system.ledger("another run")
    enable(system, again)
    seen = [system.value(progress)]
    add_teams(system, 99)
    insert_truth(system, ALICE, 0, "new", team_id=99)
    plan(system, again)
    seen.append(system.value(progress))
    assert (seen[0], 0 < seen[1] < 99) == (0, True), "nothing is said before the plan"


def test_what_is_missing_is_listed_with_its_reason(system: System, ledger: Ledger) -> None:
    enable(system, ledger)
    plan(system, ledger)
    copy_and_verify(system, ledger, TEAM)
    copy_team(ledger, system.warehouse(), TEAM + 1)
    ledger.set_failed([TEAM + 2], "the disk is full")
    insert_truth(system, ALICE, 0, "id", 100)

    def refused_by(step: Callable[[], object]) -> None:
        with pytest.raises(GateError) as refused:
            step()
        told = str(refused.value)
        assert "3 of 4 teams are not verified, so nothing is switched" in told
        assert f"team {TEAM + 1}: copied" in told
        assert f"team {TEAM + 2}: failed (the disk is full)" in told
        assert "team 100: appeared after the plan" in told
        assert f"team {TEAM}:" not in told
        assert "trigger the run again" in told

    before = dump(system)
    refused_by(lambda: judge(system, ledger))
    refused_by(lambda: switch(system, ledger))
    assert dump(system) == before


def test_a_long_list_is_cut_short_and_counted(system: System, ledger: Ledger) -> None:
    enable(system, ledger)
    plan(system, ledger)
    for team_id in range(100, 130):
        insert_truth(system, ALICE, 0, "id", team_id)
    with pytest.raises(GateError, match="33 of 33 teams are not verified") as refused:
        judge(system, ledger)
    assert "and 13 more" in str(refused.value)
    assert str(refused.value).count("\n  team ") == 20


@pytest.mark.parametrize("where", ["Postgres", Table.OLD, Table.NEW])
def test_a_team_that_appears_after_the_plan_is_not_forgotten(system: System, ledger: Ledger, where: str) -> None:
    migrate_together(system, ledger)
    judge(system, ledger)
    if where == "Postgres":
        insert_truth(system, ALICE, 0, "id", 100)
    else:
        system.clickhouse.command(f"INSERT INTO {where} (team_id, distinct_id) VALUES (100, 'id')")
    unchanged(system, GateError, lambda: switch(system, ledger), "team 100: appeared after the plan")

    again = system.ledger("the next run")
    enable(system, again)
    assert plan(system, again) == [100]
    copy_and_verify(system, again, 100)
    switch(system, again)
    assert (system.status(), system.disagreements()) == (2, {})


@pytest.mark.parametrize("copied", [False, True])
def test_a_team_that_vanishes_after_the_plan_keeps_no_gate_shut(system: System, ledger: Ledger, copied: bool) -> None:
    insert_truth(system, ALICE, 0, "id", 100)
    enable(system, ledger)
    copy_and_verify(system, ledger, *{*plan(system, ledger)} - {100})
    if copied:
        copy_team(ledger, system.warehouse(), 100)
    system.postgres.execute(
        "DELETE FROM posthog_persondistinctid WHERE team_id = 100; DELETE FROM posthog_person WHERE team_id = 100; "
        "DELETE FROM posthog_team WHERE id = 100"
    )
    unchanged(system, GateError, lambda: judge(system, ledger), "team 100")

    again = system.ledger("the next run")
    enable(system, again)
    assert plan(system, again) == [100]
    copy_and_verify(system, again, 100)
    judge(system, again)
    switch(system, again)
    assert (system.status(), system.disagreements()) == (2, {})


def test_a_run_without_a_plan_certifies_nothing(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    again = system.ledger("the next run")
    enable(system, again)
    unchanged(system, GateError, lambda: judge(system, again), "made no plan.*first task that failed")
    unchanged(system, GateError, lambda: switch(system, again), "made no plan")


def test_a_trial_is_certified_for_its_teams_alone(system: System, ledger: Ledger) -> None:
    enable(system, ledger, TRIAL)
    assert plan(system, ledger, TRIAL) == [TEAM]
    copy_and_verify(system, ledger, TEAM)
    assert judge(system, ledger, TRIAL)["teams"] == 1
    unchanged(system, GateError, lambda: judge(system, ledger), "2 of 3 teams are not verified")

    again = system.ledger("the whole")
    enable(system, again)
    assert sorted(plan(system, again)) == [TEAM + 1, TEAM + 2], "what the trial verified stays verified"


def test_a_trial_whose_switch_is_started_by_hand_switches_nothing(system: System, ledger: Ledger) -> None:
    enable(system, ledger, TRIAL)
    plan(system, ledger, TRIAL)
    copy_and_verify(system, ledger, TEAM)
    judge(system, ledger, TRIAL)
    unchanged(system, GateError, lambda: switch(system, ledger, TRIAL), "trial of single teams, which switches nothing")


@pytest.mark.parametrize("settings", [TRIAL, Settings(dry_run=True)], ids=["trial", "dry run"])
def test_no_trial_ends_old_writes(system: System, ledger: Ledger, settings: Settings) -> None:
    migrate_together(system, ledger)
    switch(system, ledger)
    unchanged(system, GateError, lambda: old_writes_end(ledger, settings), "which switches nothing")
    assert check(ledger, system.warehouse(), settings, []).verdict is Verdict.NOTHING


def test_a_dry_run_whose_dual_write_is_started_by_hand_writes_nothing(system: System, ledger: Ledger) -> None:
    dry = Settings(dry_run=True)
    unchanged(system, MigrationError, lambda: enable(system, ledger, dry), "a dry run, which writes nothing")


@pytest.mark.parametrize("status", [0, 1, 3, 4, 6])
def test_a_row_that_somebody_else_changed_stops_the_switch(system: System, ledger: Ledger, status: int) -> None:
    migrate_together(system, ledger)
    judge(system, ledger)
    system.postgres.execute("UPDATE posthog_asyncmigration SET status = %s", [status])
    told = "was STARTING when this run last saw it and is now .*Nothing was switched.*trigger a new run"
    unchanged(system, ChangedElsewhereError, lambda: switch(system, ledger), told)
    assert system.switches() == {"reads": "old", "writes": "both"}


@pytest.mark.parametrize("last", ["nothing", "an earlier run's proof", "missed", "turned on anew"])
def test_the_gate_asks_the_ledger_for_the_proof_of_the_dual_write(system: System, ledger: Ledger, last: str) -> None:
    """Somebody marked prove_dual_writes as a success in Airflow."""
    migrate_together(system, ledger)
    if last == "an earlier run's proof":
        ledger = system.ledger("the next run")
        enable(system, ledger)
        ledger.record("planned")
    elif last == "nothing":
        system.postgres.execute("DELETE FROM pdi2_migration.event WHERE what = 'dual_writes_proven'")
    else:
        ledger.record("dual_writes_missed" if last == "missed" else "dual_writes_enabled")
    told = "no proof of the dual write.*Reads stay on the old table.*Clear the task prove_dual_writes"
    unchanged(system, GateError, lambda: judge(system, ledger), told)
    unchanged(system, GateError, lambda: switch(system, ledger), told)

    ledger.record("dual_writes_proven")
    switch(system, ledger)
    assert system.status() == 2


@pytest.mark.parametrize("how", ["set back", "upgraded"])
def test_reads_stay_where_the_new_table_is_no_longer_written(system: System, ledger: Ledger, how: str) -> None:
    """Verify and the recheck repair what the new table misses, so no team fails because of it."""
    migrate_together(system, ledger)
    if how == "set back":
        set_switch(system.postgres, WRITES, "old")
    else:
        system.postgres.execute("DELETE FROM posthog_instancesetting WHERE key = %s", [WRITES])
    told = "no longer writes both tables.*Reads stay on the old table.*trigger a new run"
    unchanged(system, GateError, lambda: judge(system, ledger), told)
    unchanged(system, GateError, lambda: switch(system, ledger), told)

    again = system.ledger("the next run")
    enable(system, again)
    assert {team.status for team in again.teams()} == {"copied"}, "what came meanwhile is not in the new table"
    copy_and_verify(system, again, *plan(system, again))
    switch(system, again)
    assert system.switches() == {"reads": "new", "writes": "both"}


def test_reads_stay_where_the_new_table_stops_being_written_during_the_recheck(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate_together(system, ledger)

    def set_back(*_: object) -> dict[str, Any]:
        set_switch(system.postgres, WRITES, "old")
        return {}

    monkeypatch.setattr("pdi2.core.cluster.replicas.wait_for_all", set_back)
    with pytest.raises(GateError, match="no longer writes both tables"):
        switch(system, ledger)
    assert (system.status(), system.switches()) == (5, {"reads": "old", "writes": "old"})


def test_a_row_that_is_gone_stops_the_switch(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    system.postgres.execute("DELETE FROM posthog_asyncmigration")
    unchanged(system, ChangedElsewhereError, lambda: switch(system, ledger), "now gone")


def test_a_row_that_somebody_else_completed_is_not_taken_for_our_switch(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    system.postgres.execute("UPDATE posthog_asyncmigration SET status = 2")
    unchanged(system, ChangedElsewhereError, lambda: switch(system, ledger), "completed by somebody else")


def test_old_writes_do_not_end_by_a_switch_that_somebody_else_made(system: System, ledger: Ledger) -> None:
    """Somebody may mark the red switch_reads as done, because the row is complete."""
    migrate_together(system, ledger)
    system.postgres.execute("UPDATE posthog_asyncmigration SET status = 2, finished_at = now()")
    unchanged(
        system, GateError, lambda: old_writes_end(ledger, NO_WAIT), "completed by somebody else.*old writes go on"
    )


@pytest.mark.skipif(bool(ENGINE), reason="there no mutation outlives its statement")
def test_a_mutation_that_began_after_preflight_is_waited_for_and_what_it_removed_is_repaired(
    system: System, ledger: Ledger
) -> None:
    """TEAM is verified while the mutation goes on, and sees the row that it removes later."""
    enable(system, ledger)
    plan(system, ledger)
    for team_id in TEAMS:
        copy_team(ledger, system.warehouse(), team_id)
    system.clickhouse.command("SYSTEM STOP MERGES person_distinct_id2")
    delete = "ALTER TABLE person_distinct_id2 DELETE WHERE distinct_id = 'other'"
    system.clickhouse.command(delete, settings={"mutations_sync": 0})
    time.sleep(1)  # system.mutations has whole seconds
    for team_id in TEAMS:
        verify_team(ledger, system.warehouse(), team_id, NO_WAIT)

    with pytest.raises(WaitError, match="carrying out 1 mutation.*DELETE WHERE distinct_id = 'other'"):
        switch(system, ledger)
    assert system.switches()["reads"] == "old"
    assert "carrying out 1 mutation" in ledger.latest_of_run(PUT_OFF)["reason"]

    system.clickhouse.command("SYSTEM START MERGES person_distinct_id2")
    system.clickhouse.command(f"{delete} AND 0", settings={"mutations_sync": 2})
    assert system.disagreements() != {}
    switch(system, ledger)
    assert (system.status(), system.disagreements()) == (2, {})
    assert ledger.latest_of_run(PUT_OFF)["reason"] is None, "and the page need not say so any longer"


@pytest.mark.skipif(bool(ENGINE), reason="there no mutation outlives its statement")
def test_a_mutation_that_fails_keeps_the_gate_shut(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    alter = "ALTER TABLE person_distinct_id2 UPDATE _offset = throwIf(1, 'no such luck') WHERE 1"
    with pytest.raises(Exception, match="no such luck"):
        system.clickhouse.command(alter, settings={"mutations_sync": 2})
    told = "A mutation .* fails.*Reads stay on the old table.*no such luck.*KILL MUTATION.*trigger it again"
    with pytest.raises(BusyError, match=told):
        switch(system, ledger)
    assert system.switches()["reads"] == "old"
    system.clickhouse.command(f"KILL MUTATION WHERE database = '{system.database}'")
    switch(system, ledger)


def test_two_tries_of_the_switch_switch_once(system: System, ledger: Ledger) -> None:
    """Airflow loses sight of a try, and begins another one."""
    migrate_together(system, ledger)
    first = system.ledger(ledger.airflow_run)
    switch_reads(ledger, Meanwhile(system, "teams_of_new", lambda: switch(system, first)), NO_WAIT)
    assert system.status() == 2
    assert system.value("SELECT count(*) FROM pdi2_migration.event WHERE what = 'reads_switched'") == 1


def test_a_try_of_the_switch_that_was_reported_as_failed_meanwhile_switches_nothing(
    system: System, ledger: Ledger
) -> None:
    """A task goes on after its supervisor was killed, and its run was marked as failed."""
    migrate_together(system, ledger)
    reported = system.ledger(ledger.airflow_run)
    meanwhile = Meanwhile(system, "teams_of_new", lambda: close_run(reported, NO_WAIT))
    with pytest.raises(ChangedElsewhereError, match="is now ERRORED.*Nothing was switched"):
        switch_reads(ledger, meanwhile, NO_WAIT)
    assert (system.status(), system.switches()["reads"]) == (3, "old")
    switch(system, ledger)
    assert system.status() == 2, "once its tasks are cleared, the run goes on"


def missed_link(system: System, distinct_id: str) -> None:
    """What reaches Postgres and the old table while the consumer of the new one is down."""
    now = system.clickhouse.command("SELECT toUnixTimestamp(now())")
    insert_old(system, [{**event("+A1", distinct_id), "_timestamp": now}])
    insert_truth(system, ALICE, 0, distinct_id)


def link_in_both(system: System, distinct_id: str) -> None:
    missed_link(system, distinct_id)
    insert_new(system, ALICE, 0, distinct_id)


def test_a_dual_write_that_broke_since_its_proof_puts_the_switch_off(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the end of old writes. Only a link that reaches both tables shows that the consumer works again."""
    monkeypatch.setattr("pdi2.core.switch.proof.LATE_SECONDS", 0)
    migrate_together(system, ledger)
    system.postgres.execute(
        "UPDATE pdi2_migration.event SET detail = jsonb_set(detail, '{enabled_at}', '1') "
        "WHERE what = 'dual_writes_enabled'"
    )
    missed_link(system, "new")
    with pytest.raises(WaitError, match='1 link reached .*"new".*Reads stay on the old table, and what was missed is'):
        switch(system, ledger)
    assert system.disagreements() == {}, "it is repaired, which says nothing about the consumer"
    with pytest.raises(WaitError, match="1 link reached .*No link has come since.*Reads stay on the old table"):
        switch(system, ledger)
    assert system.switches()["reads"] == "old"
    wait_for_the_next_second(system)
    link_in_both(system, "works again")
    switch(system, ledger)
    assert ledger.latest_of_run(PUT_OFF) == {"reason": None}

    wait_for_the_next_second(system)
    missed_link(system, "newer")
    for _ in range(2):
        with pytest.raises(WaitError, match='"newer".*old writes go on, and a rollback stays possible'):
            stop_old_writes(system, ledger)
        monkeypatch.setattr("pdi2.core.switch.proof.WATCHED_AGAIN_SECONDS", 0)  # as if an hour had passed
    assert system.switches() == {"reads": "new", "writes": "both"}
    wait_for_the_next_second(system)
    insert_new(system, ALICE, 0, "newer")
    link_in_both(system, "works too")
    stop_old_writes(system, ledger)
    assert system.switches() == {"reads": "new", "writes": "new"}


def test_a_link_that_is_a_little_late_puts_nothing_off(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate_together(system, ledger)
    wait_for_the_next_second(system)
    missed_link(system, "late")
    monkeypatch.setattr("time.sleep", lambda seconds: insert_new(system, ALICE, 0, "late") if seconds == 5 else None)
    switch(system, ledger)
    assert system.switches()["reads"] == "new"
    assert ledger.latest_of_run("links_missed") is None


def wait_for_the_next_second(system: System) -> None:
    begin = system.clickhouse.command("SELECT toUnixTimestamp(now())")
    until(lambda: system.clickhouse.command("SELECT toUnixTimestamp(now())") > begin)


@pytest.mark.parametrize("setting", [WRITES, READS])
def test_the_way_back_is_not_closed_where_somebody_set_a_switch_back(
    system: System, ledger: Ledger, setting: str
) -> None:
    migrate_together(system, ledger)
    switch(system, ledger)
    set_switch(system.postgres, setting, "old")
    told = "somebody set one of them back by hand"
    unchanged(system, GateError, lambda: stop_old_writes(system, ledger), f"{told}.*Old writes were not ended")
    with pytest.raises(PreflightError, match=told):
        check(system.ledger("the next run"), system.warehouse(), NO_WAIT, [])


def test_no_rollback_to_an_old_table_that_missed_updates_whatever_the_setting_says(
    system: System, ledger: Ledger
) -> None:
    migrate_together(system, ledger)
    switch(system, ledger)
    stop_old_writes(system, ledger)
    set_switch(system.postgres, WRITES, "both")
    told = 'Old writes have stopped .*is now "both".*lacks what came since'
    unchanged(system, RollbackError, lambda: roll_back(system.ledger("the rollback")), told)


def test_the_way_back_is_not_closed_while_the_new_table_answers_wrongly(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    switch(system, ledger)
    system.postgres.execute(
        "INSERT INTO pdi2_migration.finding (team_id, distinct_id, kind, repaired) VALUES (%s, 'id', 'missing', false)",
        [TEAM],
    )
    with pytest.raises(WaitError, match="answers wrongly \\(team 7\\), so old writes go on"):
        stop_old_writes(system, ledger)
    ledger.settle_findings(None, ledger.clock())
    stop_old_writes(system, ledger)
    assert system.switches()["writes"] == "new"


def test_a_switch_that_fails_in_the_middle_switches_nothing(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    when_recorded(system, "event", "NEW.what = 'reads_switched'", "RAISE 'the disk is full'")
    before = dump(system)
    with pytest.raises(Exception, match="the disk is full"):
        switch(system, ledger)
    assert dump(system) == before


def test_the_switch_happens_once(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    switch(system, ledger)
    once = dump(system)
    switch(system, ledger)
    assert dump(system) == once


def test_old_writes_go_on_until_no_reader_can_need_them(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    not_yet = "Reads are not, or no longer, on the new table.*old writes go on"
    unchanged(system, GateError, lambda: old_writes_end(ledger, NO_WAIT), not_yet)
    before = datetime.now(UTC)
    switch(system, ledger)
    end = old_writes_end(ledger, Settings(read_cache_seconds=900))
    assert before <= end - timedelta(seconds=900) <= datetime.now(UTC)

    stop_old_writes(system, ledger)
    assert old_writes_end(ledger, Settings(read_cache_seconds=900)) == end


def test_the_time_of_old_writes_counts_from_the_commit_of_the_switch(system: System, ledger: Ledger) -> None:
    """Its transaction may wait for a lock, or its commit for a standby; readers see the old table until then."""
    migrate_together(system, ledger)
    system.postgres.execute(
        """
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON posthog_asyncmigration DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION slow()
        """
    )
    switch(system, ledger)
    row = Switches(ledger.connection).row()
    assert row
    assert row.finished_at

    end = old_writes_end(ledger, Settings(read_cache_seconds=900))
    assert end - row.finished_at >= timedelta(seconds=901)
    assert end <= ledger.clock() + timedelta(seconds=900)


def test_old_writes_end_by_no_run_that_another_one_followed(system: System, ledger: Ledger) -> None:
    """It switched and was rolled back; then a run with stop_old_writes off switched; then its task is cleared."""
    migrate_together(system, ledger)
    switch(system, ledger)
    roll_back(system.ledger("the rollback"))
    later = system.ledger("a later run")
    migrate_together(system, later)
    switch(system, later)

    unchanged(system, GateError, lambda: old_writes_end(ledger, NO_WAIT), "A later run has taken the migration over")
    unchanged(system, GateError, lambda: stop_old_writes(system, ledger), "old writes go on")
    for of in (later, system.ledger("a run that only ends old writes")):
        old_writes_end(of, NO_WAIT)
        stop_old_writes(system, of)
    assert system.switches()["writes"] == "new"


def test_where_the_commit_was_not_recorded_the_time_counts_anew(system: System, ledger: Ledger) -> None:
    """The worker died right after the commit, or an earlier release made the switch."""
    migrate_together(system, ledger)
    switch(system, ledger)
    forget = "DELETE FROM pdi2_migration.event WHERE what = 'switch_committed'"
    system.postgres.execute(forget)
    before = ledger.clock()
    switch(system, ledger)
    end = old_writes_end(ledger, NO_WAIT)
    assert before <= end <= ledger.clock()
    system.postgres.execute(forget)
    assert end < old_writes_end(ledger, NO_WAIT)


def test_old_writes_stop_only_once_reads_are_switched(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    unchanged(system, ChangedElsewhereError, lambda: stop_old_writes(system, ledger), "is now STARTING")


def test_a_rollback_before_the_switch_has_nothing_to_do(system: System, ledger: Ledger) -> None:
    before = dump(system)
    assert "old table already" in roll_back(ledger)
    assert dump(system) == before
    migrate_together(system, ledger)
    told = f'run "{ledger.airflow_run}" left no report: if it still goes on in Airflow, it may yet switch'
    unchanged(system, RollbackError, lambda: roll_back(system.ledger("the rollback")), told)
    ledger.end_run("failed")
    before = dump(system)
    assert "old table already" in roll_back(system.ledger("the rollback"))
    assert dump(system) == before


def test_a_rollback_returns_reads_while_both_tables_are_written(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    switch(system, ledger)
    writer = system.writer()
    moved = writer.create(TEAM, "after the switch")
    writer.identify(TEAM, "id", moved)
    writer.flush()

    told = roll_back(system.ledger("the rollback"))

    assert "restart" in told
    assert system.status() == 4
    assert system.value("SELECT progress FROM posthog_asyncmigration") == 0
    assert system.switches() == {"reads": "old", "writes": "both"}
    assert events(system, "rolled_back") == 1
    assert system.disagreements(Table.OLD) == {}, "the old table missed nothing"
    unchanged(system, GateError, lambda: old_writes_end(ledger, NO_WAIT), "If somebody rolled back, all is well")
    unchanged(
        system,
        ChangedElsewhereError,
        lambda: stop_old_writes(system, ledger),
        "is now ROLLED_BACK",
    )
    unchanged(system, GateError, lambda: switch(system, ledger), "made no plan")


def test_a_rollback_waits_for_no_session_of_a_host_that_died(system: System, ledger: Ledger) -> None:
    """And what its task still does, if it is alive after all, changes nothing that anybody reads."""
    migrate_together(system, ledger)
    switch(system, ledger)
    hold(ledger)

    roll_back(system.ledger("the rollback"))

    assert (system.status(), system.switches()) == (4, {"reads": "old", "writes": "both"})
    copy_and_verify(system, ledger, TEAM)
    assert system.disagreements() == system.disagreements(Table.OLD) == {}
    unchanged(system, GateError, lambda: switch(system, ledger), "made no plan")
    with pytest.raises(BusyError, match="is running"):
        enable(system, system.ledger("the next run"))
    end_session(system, ledger)
    enable(system, again := system.ledger("the next run"))
    assert sorted(plan(system, again)) == list(TEAMS), "every team is verified again"


@pytest.mark.parametrize("older", [False, True], ids=["with instance settings", "without"])
def test_a_rollback_that_would_lose_writes_is_refused(system: System, ledger: Ledger, older: bool) -> None:
    if older:
        system.postgres.execute("DROP TABLE posthog_instancesetting")
    migrate_together(system, ledger)
    switch(system, ledger)
    if not older:
        stop_old_writes(system, ledger)
    told = "old table lacks what came since.*Nothing was changed"
    unchanged(system, RollbackError, lambda: roll_back(system.ledger("the rollback")), told)
    assert system.status() == 2


def test_a_rollback_that_meets_the_end_of_old_writes_loses_none(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    switch(system, ledger)

    class Slow(Ledger):
        def create(self) -> None:
            stop_old_writes(system, ledger)

    with pytest.raises(RollbackError, match="Old writes have stopped"):
        roll_back(Slow(system.ledger().connection, "the rollback", "a test"))
    assert system.switches() == {"reads": "new", "writes": "new"}
    assert system.status() == 2


@pytest.mark.parametrize("status", [1, 2])
def test_a_dual_write_that_is_enabled_by_hand_undoes_no_switch(system: System, ledger: Ledger, status: int) -> None:
    migrate_together(system, ledger)
    switch(system, ledger)
    stop_old_writes(system, ledger)
    system.postgres.execute("UPDATE posthog_asyncmigration SET status = %s", [status])
    unchanged(system, DualWriteError, lambda: enable(system, ledger), "since preflight looked.*Nothing was changed")


def test_migrating_again_after_a_rollback_verifies_every_team_again(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    switch(system, ledger)
    roll_back(system.ledger("the rollback"))
    slices = system.value("SELECT count(*) FROM pdi2_migration.slice")
    set_switch(system.postgres, WRITES, "old")
    alone = system.writer()
    alone.identify(TEAM, "id", alone.create(TEAM, "while only the old table was written"))
    alone.flush()
    assert system.disagreements() == {TEAM: {"id", "while only the old table was written"}}

    again = system.ledger("the next run")
    enable(system, again)
    assert {team.status for team in system.teams().values()} == {"copied"}
    assert sorted(plan(system, again)) == list(TEAMS)
    unchanged(system, GateError, lambda: judge(system, again), "3 of 3 teams are not verified")
    copy_and_verify(system, again, *TEAMS)
    switch(system, again)

    assert (system.status(), system.disagreements()) == (2, {})
    assert system.value("SELECT count(*) FROM pdi2_migration.slice") == slices, "nothing was copied twice"
    merge(system)
    assert system.disagreements() == {}


def test_administrators_see_a_failed_run_and_the_next_goes_on(system: System, ledger: Ledger) -> None:
    enable(system, ledger)
    plan(system, ledger)
    copy_and_verify(system, ledger, TEAM)
    ledger.set_failed([TEAM + 1], "the disk is full")
    ledger.record("task_failed", task="copy", error="a task failed")

    facts = close_run(ledger, NO_WAIT)

    assert (facts["outcome"], facts["teams"], facts["verified"]) == ("failed", 3, 1)
    assert system.status() == 3
    told = system.value("SELECT description FROM posthog_asyncmigrationerror")
    assert "a task failed" in told
    assert f"2 of 3 teams are not verified:\nteam {TEAM + 1}: failed (the disk is full)" in told
    assert system.switches() == {"reads": "old", "writes": "both"}

    again = system.ledger("the next run")
    enable(system, again)
    assert system.status() == 5
    assert sorted(plan(system, again)) == [TEAM + 1, TEAM + 2]
    copy_and_verify(system, again, TEAM + 1, TEAM + 2)
    switch(system, again)
    assert close_run(again, NO_WAIT)["outcome"] == "completed"
    assert (system.status(), system.disagreements()) == (2, {})


def test_administrators_do_not_see_a_failure_that_a_later_try_got_past(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    ledger.record("task_failed", task="team.copy", error="a retry helped")

    assert close_run(ledger, NO_WAIT)["outcome"] == "failed"

    told = system.value("SELECT description FROM posthog_asyncmigrationerror")
    assert told == "The run ended before the switch, and no task said why: see its logs."


def test_administrators_see_why_a_run_failed_again_after_its_tasks_were_cleared(system: System, ledger: Ledger) -> None:
    enable(system, ledger, APPROVED)
    plan(system, ledger, APPROVED)
    copy_and_verify(system, ledger, *TEAMS[1:])
    ledger.set_failed([TEAM], "the disk is full")
    close_run(ledger, APPROVED)
    copy_and_verify(system, ledger, TEAM)
    judge(system, ledger, APPROVED)
    ledger.record("switch_rejected", by="ann")

    for _ in range(2):  # `report` may be cleared too
        assert close_run(ledger, APPROVED)["outcome"] == "rejected"
        told = system.postgres.execute("SELECT description FROM posthog_asyncmigrationerror ORDER BY id").fetchall()
        assert ["the disk is full" in told[0][0], "ann rejected the switch" in told[1][0], len(told)] == [True, True, 2]
    assert system.status() == 3


def test_a_run_whose_failed_tasks_are_cleared_after_its_report_goes_on_to_the_switch(
    system: System, ledger: Ledger
) -> None:
    enable(system, ledger)
    left = plan(system, ledger).pop()
    copy_and_verify(system, ledger, *{TEAM, TEAM + 1, TEAM + 2} - {left})
    assert close_run(ledger, NO_WAIT)["outcome"] == "failed"
    assert system.status() == 3

    copy_and_verify(system, ledger, left)
    judge(system, ledger)
    switch(system, ledger)

    assert system.status() == 2
    assert close_run(ledger, NO_WAIT)["outcome"] == "completed"


def test_a_rejected_run_whose_approval_is_given_after_all_switches(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    ledger.record("switch_rejected", by="ann")
    assert close_run(ledger, NO_WAIT)["outcome"] == "rejected"
    assert system.status() == 3

    switch(system, ledger)
    assert system.status() == 2


POSTHOG_STOPPED = {
    "errored": "status = 3, started_at = clock_timestamp(), finished_at = clock_timestamp()",
    "resumed and errored": "status = 3, finished_at = clock_timestamp()",
    "set to starting": "status = 5, started_at = clock_timestamp(), finished_at = NULL",
    "set to 0": "status = 0",
    "set to 4": "status = 4",
}


@pytest.mark.parametrize("left", POSTHOG_STOPPED.values(), ids=POSTHOG_STOPPED)
def test_after_posthogs_own_runner_every_team_is_verified_again(system: System, ledger: Ledger, left: str) -> None:
    """Its rows have version 0 and a time of 1970: they hide our copies, and no recheck would look at them."""
    system.postgres.execute("UPDATE posthog_persondistinctid SET version = 1")
    enable(system, ledger)
    plan(system, ledger)
    copy_and_verify(system, ledger, TEAM, TEAM + 1)
    close_run(ledger, NO_WAIT)
    insert_new(system, BOB, 0)
    system.postgres.execute(f"UPDATE posthog_asyncmigration SET {left}")

    copy_and_verify(system, ledger, TEAM + 2)
    with pytest.raises(ChangedElsewhereError, match="somebody else changed it"):  # its tasks were cleared
        switch(system, ledger)

    again = system.ledger("the next run")
    enable(system, again)
    assert {team.status for team in again.teams()} == {"copied"}
    copy_and_verify(system, again, *plan(system, again))
    switch(system, again)
    assert (system.status(), system.disagreements()) == (2, {})


def test_a_trial_that_passed_is_no_failure(system: System, ledger: Ledger) -> None:
    enable(system, ledger, TRIAL)
    plan(system, ledger, TRIAL)
    copy_and_verify(system, ledger, TEAM)
    judge(system, ledger, TRIAL)
    assert close_run(ledger, TRIAL)["outcome"] == "trial passed"
    assert events(system, "report") == 1
    assert system.value("SELECT count(*) FROM posthog_asyncmigrationerror") == 0
    assert system.switches()["reads"] == "old"


@pytest.mark.parametrize("outcome", ["trial passed", "rejected"])
def test_a_run_is_failed_whose_team_fails_after_it_ended_well(system: System, ledger: Ledger, outcome: str) -> None:
    """Somebody cleared a task of the team."""
    settings = TRIAL if outcome == "trial passed" else APPROVED
    migrate_together(system, ledger, settings)
    judge(system, ledger, settings)
    if outcome == "rejected":
        ledger.record("switch_rejected", by="ann")
    assert close_run(ledger, settings)["outcome"] == outcome
    assert got_through(ledger, settings)

    ledger.set_failed([TEAM], "the disk is full")

    assert not got_through(ledger, settings)
    assert close_run(ledger, settings)["outcome"] == "failed"
    told = system.value("SELECT string_agg(description, ' ') FROM posthog_asyncmigrationerror")
    assert (system.status(), "the disk is full" in told) == (3, True)


def test_a_team_of_postgres_without_ids_needs_nothing(system: System, ledger: Ledger) -> None:
    add_teams(system, 100)
    migrate_together(system, ledger)
    assert judge(system, ledger)["teams"] == 3


APPROVED = Settings(settle_seconds=0, read_cache_seconds=0, require_approval=True)


def test_the_gate_asks_the_ledger_for_the_approval(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger, APPROVED)

    def refused() -> None:
        unchanged(system, GateError, lambda: switch(system, ledger, APPROVED), "This run requires an approval")

    ledger.record("switch_approved", by="ann")
    refused()  # nothing was certified
    judge(system, ledger, APPROVED)
    refused()
    ledger.record("approval_asked")
    refused()
    ledger.record("switch_rejected", by="ann")
    refused()
    ledger.record("switch_approved", by="ann")
    judge(system, ledger, APPROVED)
    refused()  # the approval is of an earlier certificate
    ledger.record("switch_approved", by="ann")
    switch(system, ledger, APPROVED)
    assert system.switches()["reads"] == "new"


def test_a_later_run_does_not_switch_by_the_approval_of_an_earlier_one(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger, APPROVED)
    judge(system, ledger, APPROVED)
    ledger.record("switch_approved", by="ann")
    again = system.ledger("the next run")
    enable(system, again, APPROVED)
    plan(system, again, APPROVED)

    unchanged(system, GateError, lambda: switch(system, again, APPROVED), "This run requires an approval")


def test_a_pause_holds_the_switch_and_the_end_of_old_writes_but_no_rollback(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    ledger.record("paused")
    with pytest.raises(WaitError, match="The switch of reads waits: a test paused"):
        switch(system, ledger)
    assert system.switches() == {"reads": "old", "writes": "both"}
    ledger.record("resumed")
    switch(system, ledger)
    ledger.record("paused")
    with pytest.raises(WaitError, match="The end of old writes waits: a test paused"):
        stop_old_writes(system, ledger)
    assert system.switches() == {"reads": "new", "writes": "both"}
    roll_back(system.ledger("the rollback"))
    assert system.switches() == {"reads": "old", "writes": "both"}


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE person_distinct_id2 DELETE WHERE distinct_id = 'id' SETTINGS mutations_sync = 1",
        "TRUNCATE TABLE person_distinct_id2",
        "ALTER TABLE person_distinct_id2 DETACH PARTITION ID 'all'",
    ],
)
def test_what_somebody_removes_after_the_recheck_holds_the_switch_and_is_repaired(
    system: System, ledger: Ledger, change: str
) -> None:
    """The recheck waits for what is in flight, and the switch for replicas: there is time to remove something."""
    migrate_together(system, ledger)
    between = Meanwhile(system, "touched_ids", lambda: system.clickhouse.command(change))

    with pytest.raises(WaitError, match="Somebody removed or changed rows"):
        switch_reads(ledger, between, NO_WAIT)

    assert system.switches()["reads"] == "old"
    switch(system, ledger)
    assert system.disagreements() == {}


def test_a_part_that_is_dropped_after_the_recheck_is_noticed_though_enough_rows_are_left(
    system: System, ledger: Ledger
) -> None:
    """Merges have yet to drop older rows of the team, so the count of rows shows nothing."""
    stop_merges(system)
    migrate_together(system, ledger)
    writer = system.writer()
    for number in range(2):
        writer.identify(TEAM, "id", writer.create(TEAM, f"new {number}"))
        writer.flush()
    ledger.verify_all_again()
    for team_id in TEAMS:
        verify_team(ledger, system.warehouse(), team_id, NO_WAIT)
    part = system.clickhouse.command(f"SELECT _part FROM {Table.NEW} WHERE distinct_id = 'other' AND team_id = {TEAM}")
    drop = f"ALTER TABLE {Table.NEW} DROP PART '{part}'"
    between = Meanwhile(system, "touched_ids", lambda: system.clickhouse.command(drop))
    with pytest.raises(WaitError, match="Somebody removed or changed rows"):
        switch_reads(ledger, between, NO_WAIT)

    switch(system, ledger)
    assert system.disagreements() == {}


def test_a_table_that_is_shown_again_soon_lets_the_switch_go_on(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while somebody restarts it."""
    migrate_together(system, ledger)
    monkeypatch.setattr(pressure, "LOOK_EVERY_SECONDS", 0.01)
    system.clickhouse.command(f"RENAME TABLE {Table.NEW} TO away")
    back = Meanwhile(system, "tables", lambda: system.clickhouse.command(f"RENAME TABLE away TO {Table.NEW}"))
    switch_reads(ledger, back, NO_WAIT)
    assert system.switches()["reads"] == "new"


def test_a_ttl_that_comes_after_preflight_stops_the_switch(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pressure, "WAIT_IN_SLOT_SECONDS", 0)
    monkeypatch.setattr(pressure, "LOOK_EVERY_SECONDS", 0)
    migrate_together(system, ledger)
    judge(system, ledger)
    system.clickhouse.command(
        "ALTER TABLE person_distinct_id2 MODIFY TTL _timestamp + toIntervalDay(1) "
        "SETTINGS materialize_ttl_after_modify = 0"
    )
    unchanged(system, GateError, lambda: switch(system, ledger), "(?s)since preflight.*has a TTL that deletes rows")
    system.clickhouse.command("ALTER TABLE person_distinct_id2 REMOVE TTL")
    switch(system, ledger)


def test_a_rollback_that_meets_the_switch_waits_for_it_and_returns_reads(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate_together(system, ledger)
    set_reads, told = Switches.set_reads, []

    def meanwhile() -> None:
        told.append(roll_back(system.ledger("the rollback")))

    rollback = threading.Thread(target=meanwhile)

    def in_the_transaction(switches: Switches, value: str) -> None:
        set_reads(switches, value)
        if value == "new":
            rollback.start()
            until(lambda: system.value("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"))

    monkeypatch.setattr(Switches, "set_reads", in_the_transaction)
    switch(system, ledger)
    rollback.join()

    assert told[0].startswith("Reads are back on the old table")
    assert system.switches() == {"reads": "old", "writes": "both"}


def test_a_rollback_where_somebody_set_the_setting_alone_does_not_say_that_reads_are_old(
    system: System, ledger: Ledger
) -> None:
    enable(system, ledger)
    set_switch(system.postgres, READS, "new")
    unchanged(system, RollbackError, lambda: roll_back(system.ledger("the rollback")), "READS is .new.")


def test_no_rollback_leads_to_an_old_table_that_has_ever_not_been_written(system: System, ledger: Ledger) -> None:
    """Somebody sets the switches back by hand, and migrates again: the old table still lacks what came in between."""
    migrate_together(system, ledger)
    switch(system, ledger)
    stop_old_writes(system, ledger)
    close_run(ledger, NO_WAIT)
    writer = system.writer()
    writer.create(TEAM, "in the new table alone")
    writer.flush()
    system.postgres.execute("UPDATE posthog_asyncmigration SET status = 4")
    set_switch(system.postgres, READS, "old")
    set_switch(system.postgres, WRITES, "both")
    again = system.ledger("another run")
    migrate_together(system, again)
    assert "old writes had stopped before" in way_back(again, False, 900).text
    switch(system, again)

    unchanged(system, RollbackError, lambda: roll_back(system.ledger("the rollback")), "Old writes have stopped")


@pytest.mark.parametrize("decision", ["rolled_back", "switch_rejected"])
def test_a_run_that_no_person_triggered_since_undoes_no_decision(system: System, ledger: Ledger, decision: str) -> None:
    before = ledger.clock()
    migrate_together(system, ledger)
    waiting = system.ledger("a run that waited for its turn")
    assert decision_against(waiting, NO_WAIT, before) == []
    ledger.record(decision, by="ann")

    for triggered_at, why in [(before, "a person before that"), (None, "no person")]:
        [told] = decision_against(waiting, NO_WAIT, triggered_at)
        assert f"this run was triggered by {why}" in told
    assert decision_against(waiting, APPROVED, before) == [] or decision == "rolled_back"
    assert decision_against(waiting, NO_WAIT, ledger.clock()) == []
    enable(system, system.ledger("a run that a person triggered"))
    assert decision_against(waiting, NO_WAIT, None) == []


def test_a_switch_by_somebody_else_is_not_told_as_a_missing_approval(system: System, ledger: Ledger) -> None:
    """`approve` asks nobody then."""
    migrate_together(system, ledger, APPROVED)
    judge(system, ledger, APPROVED)
    system.postgres.execute("UPDATE posthog_asyncmigration SET status = 2, finished_at = now() + interval '1 second'")
    unchanged(system, ChangedElsewhereError, lambda: switch(system, ledger, APPROVED), "completed by somebody else")


def test_a_rejection_is_over_once_the_same_person_approves(system: System, ledger: Ledger) -> None:
    """Somebody cleared `approve`. A schedule's run may then end old writes, or find that nothing is left."""
    migrate_together(system, ledger)
    for what in ("switch_rejected", "switch_approved"):
        ledger.record(what, by="ann")
    switch(system, ledger)
    assert decision_against(system.ledger("of a schedule"), NO_WAIT, None) == []


def test_the_way_back_is_shown_before_and_after_the_switch(system: System, ledger: Ledger) -> None:
    def told(stop: bool, cache: int) -> tuple[bool, bool, str]:
        back = way_back(ledger, stop, cache)
        return "can return reads" in back.text, back.until is not None, back.text

    assert told(True, 900)[:2] == (True, False)
    assert "for 900 s" in told(True, 900)[2]
    assert told(True, 0)[:2] == (False, False)
    assert "as long as both tables are written" in told(False, 900)[2]
    migrate_together(system, ledger)
    judge(system, ledger)
    assert told(NO_WAIT.stop_old_writes, NO_WAIT.read_cache_seconds)[2] in for_approval(ledger, NO_WAIT)
    switch(system, ledger)
    finished = system.value("SELECT finished_at FROM posthog_asyncmigration")
    assert way_back(ledger, True, 900).until == finished + timedelta(seconds=900)
    assert told(False, 900)[:2] == (True, False)
    stop_old_writes(system, ledger)
    assert told(False, 900)[:2] == (False, False)
    assert close_run(ledger, NO_WAIT)["way_back"] == told(True, 0)[2]


def test_without_instance_settings_the_switch_itself_ends_the_way_back(system: System, ledger: Ledger) -> None:
    """As in PostHog 1.32 and 1.33: a new process that sees the row complete writes only the new table."""
    system.postgres.execute("DROP TABLE posthog_instancesetting")
    migrate_together(system, ledger)
    judge(system, ledger)
    for stop in (True, False):
        back = way_back(ledger, stop, 900)
        assert "there is no way back: this release of PostHog" in back.text
    assert back.text in for_approval(ledger, NO_WAIT)
    switch(system, ledger)
    assert "There is no way back: the old table is no longer written." in way_back(ledger, False, 900).text
