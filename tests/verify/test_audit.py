"""The audit finds drift at any time, reports it by kind, and changes nothing unless it is told to."""

from collections.abc import Iterable
from typing import Any

import pytest
from conftest import System
from pdi2.core.engines.failures import WaitError
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.ownership import hold, is_owner, try_lock
from pdi2.core.state.settings import AUDIT_SCHEMA, Settings, SettingsError
from pdi2.core.state.slices import Teams
from pdi2.core.switch.gate import switch_reads
from pdi2.core.switch.rollback import roll_back
from pdi2.core.verify import auditing
from pdi2.core.verify.auditing import AuditError, DriftError
from stories import (
    ALICE,
    BOB,
    NO_WAIT,
    TEAM,
    copy_and_verify,
    dump,
    enable,
    insert_new,
    insert_truth,
    migrate_together,
    plan,
    stop_merges,
    stop_old_writes,
    two_ids_each,
)

from demo.schema import Table

OTHER = TEAM + 1
MOST_BATCHES = 2
LOOK = Settings(in_flight_seconds=0, repair=False)
REPAIR = Settings(in_flight_seconds=0, repair=True)


@pytest.fixture
def ledger(system: System) -> Ledger:
    stop_merges(system)
    two_ids_each(system, TEAM, OTHER)
    return system.ledger("the migration")


@pytest.fixture
def switched(system: System, ledger: Ledger) -> Ledger:
    migrate_together(system, ledger)
    switch_reads(ledger, system.warehouse(), NO_WAIT)
    return ledger


@pytest.fixture(params=[2, 1], ids=["a task per team", "teams share a task"])
def most_batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "MOST_BATCHES", request.param)


def audit(system: System, settings: Settings = LOOK, failing: Iterable[int] = ()) -> tuple[auditing.Audit, str]:
    ledger, warehouse = system.ledger("the audit"), system.warehouse()
    for batch in auditing.plan(ledger, warehouse, settings, MOST_BATCHES):
        compared = [team_id for team_id in batch.team_ids if team_id not in failing]
        for teams in auditing.groups(warehouse, compared):
            auditing.record(ledger, auditing.audit(ledger, warehouse, teams, settings))
    return auditing.judge(ledger)


def drift(system: System) -> None:
    """A lost link, a lost id, a lost deletion, and an id that was deleted and created again."""
    writer = system.writer()
    carol = writer.create(TEAM, "new")
    writer.identify(TEAM, "id", carol)
    writer.delete(TEAM, "other")
    writer.outbox.clear()
    writer.create(OTHER, "reused")
    writer.delete(OTHER, "reused")
    writer.create(OTHER, "reused")
    writer.flush()


def findings(system: System) -> list[tuple[Any, ...]]:
    return system.postgres.execute(
        "SELECT team_id, distinct_id, kind, repaired, action FROM pdi2_migration.finding ORDER BY 1, 2"
    ).fetchall()


def all_but_the_audits_own(system: System) -> dict[str, Any]:
    return {
        name: rows
        for name, rows in dump(system).items()
        if name not in ("pdi2_migration.finding", "pdi2_migration.event")
    }


@pytest.mark.usefixtures("most_batches")
def test_a_table_that_agrees_passes(system: System, switched: Ledger) -> None:
    found, told = audit(system)
    assert (found.planned, found.compared, found.findings) == ({TEAM, OTHER}, {TEAM, OTHER}, {})
    assert "teams: 2" in told
    assert "No id differs" in told


def test_an_audit_after_an_upgrade_of_posthog_needs_no_old_table(system: System, switched: Ledger) -> None:
    """PostHog 1.36 has a table of settings without ours, and by then somebody may have dropped the old table."""
    system.postgres.execute("DELETE FROM posthog_instancesetting")
    system.clickhouse.command(f"DROP TABLE {Table.OLD} SYNC")
    insert_truth(system, ALICE, 0, "lost")

    found, told = audit(system, REPAIR)

    assert found.findings == {"missing": {"repaired": 1, "remaining": 0}}
    assert "The old table is no longer written." in told


def test_an_audit_that_waited_goes_on_where_it_was(system: System, switched: Ledger) -> None:
    ledger, warehouse = system.ledger("the audit"), system.warehouse()
    auditing.plan(ledger, warehouse, LOOK, MOST_BATCHES)
    assert auditing.left(ledger, [TEAM, OTHER]) == [TEAM, OTHER]
    auditing.record(ledger, auditing.audit(ledger, warehouse, Teams((TEAM,), 2), LOOK))
    assert auditing.left(ledger, [TEAM, OTHER]) == [OTHER]
    auditing.plan(ledger, warehouse, LOOK, MOST_BATCHES)
    assert auditing.left(ledger, [TEAM, OTHER]) == [TEAM, OTHER], "all its tasks were cleared"


@pytest.mark.usefixtures("most_batches")
def test_drift_fails_the_audit_and_nothing_is_touched(system: System, switched: Ledger) -> None:
    drift(system)
    before = all_but_the_audits_own(system)
    with pytest.raises(DriftError) as drifted:
        audit(system)
    told = str(drifted.value)
    for part in [
        "ahead: 0 repaired, 1 open",
        "missing: 0 repaired, 1 open",
        "resurrected: 0 repaired, 1 open",
        "wrong person: 0 repaired, 1 open",
        "drifted from Postgres: 4",
        "pdi2_migration.finding",
        "Postgres is right",
        '{"repair": true}',
        "answered wrongly",
    ]:
        assert part in told
    assert findings(system) == [
        (TEAM, "id", "wrong_person", False, "left alone"),
        (TEAM, "new", "missing", False, "left alone"),
        (TEAM, "other", "resurrected", False, "left alone"),
        (OTHER, "reused", "ahead", False, "left alone"),
    ]
    assert all_but_the_audits_own(system) == before


@pytest.mark.usefixtures("most_batches")
def test_a_repair_that_is_asked_for_is_done_and_reported(system: System, switched: Ledger) -> None:
    drift(system)
    found, told = audit(system, REPAIR)
    assert found.findings == {
        "ahead": {"repaired": 1, "remaining": 0},
        "missing": {"repaired": 1, "remaining": 0},
        "resurrected": {"repaired": 1, "remaining": 0},
        "wrong_person": {"repaired": 1, "remaining": 0},
    }
    assert "missing: 1 repaired, 0 open" in told
    assert system.disagreements() == {}
    found, told = audit(system)
    assert (found.drift, found.findings) == (0, {}), "each audit for itself"


def test_deletions_that_posthog_told_nobody_blame_no_consumer(system: System, switched: Ledger) -> None:
    """PostHog 1.33's Person.delete tells ClickHouse of no distinct_id."""
    system.postgres.execute("DELETE FROM posthog_persondistinctid WHERE distinct_id = 'other'")
    with pytest.raises(DriftError, match="to 1.33 does not tell ClickHouse.*the repair is all.*other releases: find"):
        audit(system)


def test_drift_of_an_earlier_audit_is_not_reported_again(system: System, switched: Ledger) -> None:
    writer = system.writer()
    carol = writer.create(TEAM, "carol's")
    writer.flush()
    writer.identify(TEAM, "id", carol)
    with pytest.raises(DriftError):
        audit(system)
    writer.flush()
    assert audit(system)[0].findings == {}


@pytest.mark.parametrize("large", [False, True], ids=["small teams", "teams cut in ranges"])
def test_after_old_writes_have_stopped_the_old_table_is_not_asked(
    system: System, switched: Ledger, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr("pdi2.core.state.slices.SMALL_ROWS", 0)
        monkeypatch.setattr("pdi2.core.verify.digesting.aggregated_at_once", lambda _: 1)
    found, told = audit(system)
    assert found.old_differs == 0
    assert "which is not drift: about 0." in told

    stop_old_writes(system, switched)
    system.clickhouse.command(f"DROP TABLE {Table.OLD} SYNC")
    insert_truth(system, BOB, 0, "lost")
    with pytest.raises(DriftError, match="no longer written"):
        audit(system)
    assert system.value("SELECT old IS NULL FROM pdi2_migration.finding")


def test_a_team_of_postgres_alone_and_one_of_the_new_table_alone_are_compared(system: System, switched: Ledger) -> None:
    insert_truth(system, ALICE, 0, "id", team_id=100)
    insert_new(system, ALICE, 0, "stranger")
    system.clickhouse.command("INSERT INTO person_distinct_id2 (team_id, distinct_id, version) VALUES (101, 'id', 0)")
    with pytest.raises(DriftError, match="drifted from Postgres: 3"):
        audit(system)
    assert [(team_id, kind) for team_id, _, kind, _, _ in findings(system)] == [
        (TEAM, "resurrected"),
        (100, "missing"),
        (101, "resurrected"),
    ]


@pytest.mark.usefixtures("most_batches")
def test_a_team_that_could_not_be_compared_is_no_success(system: System, switched: Ledger) -> None:
    with pytest.raises(AuditError, match=rf"were not compared: 1 of 2, among them {OTHER}.*trigger the audit"):
        audit(system, failing=[OTHER])
    assert audit(system)[0].compared == {TEAM, OTHER}


def test_an_audit_that_was_cleared_and_then_failed_does_not_pass_on_what_it_found_before(
    system: System, switched: Ledger
) -> None:
    audit(system)
    with pytest.raises(AuditError, match="found until a task of it failed"):
        auditing.judge(system.ledger("the audit"), red=True)


@pytest.mark.parametrize("state", ["appeared after the plan", "failed again"])
def test_old_writes_go_on_while_an_audit_has_open_findings_in_any_team(
    system: System, switched: Ledger, state: str
) -> None:
    team_id = OTHER if state == "failed again" else 99
    insert_truth(system, BOB, 0, "lost", team_id=team_id)
    with pytest.raises(DriftError):
        audit(system)
    if state == "failed again":
        switched.set_failed([OTHER], "its verify was cleared, and met a limit")

    with pytest.raises(WaitError, match=f"answers wrongly .team {team_id}."):
        stop_old_writes(system, switched)

    audit(system, REPAIR)
    stop_old_writes(system, switched)


@pytest.mark.parametrize(
    ("table", "settings"),
    [("posthog_person", LOOK), ("posthog_persondistinctid", REPAIR)],
    ids=["persons, look", "ids, repair"],
)
def test_where_postgres_keeps_deleted_rows_no_audit_compares(
    system: System, switched: Ledger, table: str, settings: Settings
) -> None:
    """As PostHog does from 2025 on: a repair would bring the deleted ids back."""
    system.postgres.execute(f"ALTER TABLE {table} ADD COLUMN is_deleted boolean NOT NULL DEFAULT false")
    insert_new(system, BOB, 5, "id", is_deleted=True)
    before = dump(system)

    with pytest.raises(AuditError, match=f"{table} has a column is_deleted.*changed nothing"):
        audit(system, settings)
    with pytest.raises(AuditError, match="keeps deleted rows"):
        auditing.audit(system.ledger("an audit"), system.warehouse(), Teams((TEAM,), 2), settings)
    assert dump(system) == before


def test_an_audit_of_named_teams_compares_only_those(system: System, switched: Ledger) -> None:
    drift(system)
    only = Settings(in_flight_seconds=0, repair=False, team_ids=(OTHER,))
    with pytest.raises(DriftError, match="drifted from Postgres: 1"):
        audit(system, only)


def test_an_audit_of_a_team_that_there_is_not_is_no_success(system: System, switched: Ledger) -> None:
    with pytest.raises(AuditError, match="cannot be compared: 99. .* The audit compared nothing"):
        audit(system, Settings(in_flight_seconds=0, repair=False, team_ids=(TEAM, 99)))
    with pytest.raises(AuditError, match="never chose its teams"):
        auditing.judge(system.ledger("the audit"))


def test_an_audit_that_did_not_begin_is_no_success(system: System) -> None:
    with pytest.raises(AuditError, match="never chose its teams"):
        auditing.judge(system.ledger("the audit"))
    system.ledger().create()
    with pytest.raises(AuditError, match="never chose its teams"):
        auditing.judge(system.ledger("the audit"))


def test_before_any_migration_there_is_nothing_to_compare(system: System, ledger: Ledger) -> None:
    found, told = audit(system)
    assert (found.planned, "no team to compare verified (reads are on the old table" in told) == (set(), True)


def test_before_the_switch_verified_teams_are_compared_and_never_repaired(system: System, ledger: Ledger) -> None:
    enable(system, ledger)
    plan(system, ledger)
    copy_and_verify(system, ledger, TEAM)
    hold(ledger)
    before = all_but_the_audits_own(system)
    found, told = audit(system)
    assert (found.compared, found.findings) == ({TEAM}, {})
    assert "teams: 1 verified (reads are on the old table, so no others)." in told

    insert_truth(system, BOB, 0, "lost")
    before["public.posthog_person"], before["public.posthog_persondistinctid"] = (
        dump(system)[name] for name in ("public.posthog_person", "public.posthog_persondistinctid")
    )
    with pytest.raises(DriftError, match=r"fill_person_distinct_id2: it repairs before it switches. Reads are on"):
        audit(system)
    with pytest.raises(AuditError, match=r"only the migration repairs.*Nothing was changed.*without repair"):
        audit(system, REPAIR)
    assert all_but_the_audits_own(system) == before
    assert is_owner(ledger)

    copy_and_verify(system, ledger, OTHER)
    switch_reads(ledger, system.warehouse(), NO_WAIT)
    assert system.disagreements() == {}


def test_a_rollback_during_an_audit_ends_its_repairs(system: System, switched: Ledger) -> None:
    ledger = system.ledger("the audit")
    auditing.plan(ledger, system.warehouse(), REPAIR, most_batches=2)
    roll_back(system.ledger("the rollback"))
    with pytest.raises(AuditError, match="Reads are on the old table"):
        auditing.audit(ledger, system.warehouse(), Teams((TEAM,), 2), REPAIR)


def test_an_audit_does_not_hold_up_a_migration(system: System, ledger: Ledger) -> None:
    migrate_together(system, ledger)
    at_work = system.ledger("the audit")
    auditing.plan(at_work, system.warehouse(), LOOK, most_batches=2)
    again = system.ledger("the next run")
    assert try_lock(again)
    enable(system, again)
    assert plan(system, again) == [], "everything stays verified"


@pytest.mark.parametrize("wrong", [{"dry_run": True}, {"repair": "yes"}, {"in_flight_seconds": -1}])
def test_a_bad_parameter_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Settings.validated({name: schema["default"] for name, schema in AUDIT_SCHEMA.items()}, wrong, AUDIT_SCHEMA)


def test_an_audit_repairs_nothing_unless_it_is_asked_to() -> None:
    defaults = {name: schema["default"] for name, schema in AUDIT_SCHEMA.items()}
    assert Settings.validated(defaults, {}, AUDIT_SCHEMA).repair is False


def test_what_an_audit_finds_before_the_switch_is_repaired_by_it(system: System, ledger: Ledger) -> None:
    """A consumer lost a row that had arrived: nothing has changed in Postgres, and nothing new is in the table."""
    migrate_together(system, ledger)
    system.clickhouse.command("DELETE FROM person_distinct_id2 WHERE distinct_id = 'other'")
    with pytest.raises(DriftError, match="drifted from Postgres: 2"):
        audit(system)

    switch_reads(ledger, system.warehouse(), NO_WAIT)

    assert system.disagreements() == {}
    assert [row[3] for row in findings(system)] == [True, True]
