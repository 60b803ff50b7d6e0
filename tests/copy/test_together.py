"""Many small teams share statements and an Airflow task, but each has its own line, checkpoint, proof and failure."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from conftest import LiveSystem, System
from pdi2.core.copy.copying import CopyError, copy_team, copy_together
from pdi2.core.engines.failures import BusyError, WaitError
from pdi2.core.plan import planning
from pdi2.core.report.reporting import close_run
from pdi2.core.state.ledger import Ledger, Team
from pdi2.core.state.settings import Settings
from pdi2.core.state.slices import SMALL_ROWS, TEAMS_AT_ONCE, Teams, aggregated_at_once, together
from pdi2.core.verify.verifying import verify_team, verify_together
from stories import (
    ALICE,
    BOB,
    CAROL,
    NO_WAIT,
    PERSONS,
    TEAM,
    Listening,
    Meanwhile,
    enable,
    event,
    insert_new,
    insert_old,
    insert_truth,
    many_ids,
    merge,
    plan,
    refuse,
    seen,
    skip_waits,
    stop_merges,
)

from demo.schema import Table

TEAMS = range(TEAM, TEAM + 16)
HISTORIES = {
    "simple": ("+A1", "A"),
    "linked again": ("+A1 +B2", "B"),
    "unlinked": ("+A1 -A2", None),
    "gone and back": ("+A1 -A2 +A3", "A"),
    "delivered twice": ("+B1 +B1", "B"),
    "deleted before": ("+A1 -A2 +C2", "C"),
}


@pytest.fixture
def ledger(system: System) -> Ledger:
    """Teams have the same ids with different histories. Merges happen only when a story asks for them."""
    stop_merges(system)
    for shift, team_id in enumerate(TEAMS):
        of_team = list(HISTORIES)[shift % 5 :]
        events = [event(one, id_, team_id) for id_ in of_team for one in HISTORIES[id_][0].split()]
        insert_old(system, events)
        for id_ in of_team:
            if winner := HISTORIES[id_][1]:
                insert_truth(system, PERSONS[winner], 0, id_, team_id)
    ledger = system.ledger()
    enable(system, ledger)
    return ledger


def described(teams: dict[int, Team]) -> dict[int, tuple[Any, ...]]:
    return {
        team_id: (team.status, team.rows_source, team.rows_copied, team.slices_done, team.attempts, team.old_differs)
        for team_id, team in teams.items()
    }


@pytest.mark.slow
def test_teams_that_share_statements_end_as_those_that_are_alone(system: System, ledger: Ledger) -> None:
    teams = plan(system, ledger)
    for team_id in teams:
        copy_team(ledger, system.warehouse(), team_id)
        verify_team(ledger, system.warehouse(), team_id, NO_WAIT)
    alone, answers = described(system.teams()), [seen(system, team_id=team_id) for team_id in TEAMS]
    system.clickhouse.command(f"TRUNCATE TABLE {Table.NEW}")
    system.postgres.execute("DROP SCHEMA pdi2_migration CASCADE")
    plan(system, ledger)
    warehouse = Listening(system)

    assert copy_together(ledger, warehouse, teams) == []
    assert verify_together(ledger, warehouse, teams, NO_WAIT) == []

    assert described(system.teams()) == alone
    assert [seen(system, team_id=team_id) for team_id in TEAMS] == answers
    assert system.disagreements() == {}
    assert len(warehouse.heard) < 20, "however many teams"
    digests = "SELECT count(*) FROM pdi2_migration.team WHERE digest = truth_digest AND digest <> '0:0'"
    assert system.value(digests) == len(TEAMS)


@pytest.mark.slow
def test_a_team_that_cannot_be_copied_fails_alone(system: System, ledger: Ledger) -> None:
    refuse(system, f"team_id = {TEAM + 3}")
    teams = plan(system, ledger)

    left = copy_together(ledger, system.warehouse(), teams)

    assert TEAM + 3 in left
    for team_id in left:
        if team_id == TEAM + 3:
            with pytest.raises(CopyError, match=f"team {TEAM + 3} "):
                copy_team(ledger, system.warehouse(), team_id)
        else:
            copy_team(ledger, system.warehouse(), team_id)
    assert sorted(verify_together(ledger, system.warehouse(), teams, NO_WAIT)) == []
    assert {team.team_id for team in system.teams().values() if team.status != "verified"} == {TEAM + 3}


def test_what_is_wrong_in_a_few_teams_is_repaired_with_one_wait(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = skip_waits(monkeypatch)
    teams = plan(system, ledger)
    copy_together(ledger, system.warehouse(), teams)
    insert_new(system, CAROL, 7, "simple")
    insert_truth(system, BOB, 3, "lost", TEAM + 5)

    assert verify_together(ledger, system.warehouse(), teams, Settings(in_flight_seconds=9)) == []

    assert waits == [9]
    assert system.disagreements() == {}
    found = "SELECT team_id, kind, repaired FROM pdi2_migration.finding ORDER BY team_id"
    assert system.postgres.execute(found.encode()).fetchall() == [(TEAM, "ahead", True), (TEAM + 5, "missing", True)]
    assert {team.status for team in system.teams().values()} == {"verified"}


@pytest.mark.slow
def test_a_team_whose_repair_does_not_hold_fails_alone(system: System, ledger: Ledger) -> None:
    teams = plan(system, ledger)
    copy_together(ledger, system.warehouse(), teams)
    insert_truth(system, BOB, 3, "lost", TEAM + 5)
    refuse(system, f"team_id = {TEAM + 5}")

    left = verify_together(ledger, system.warehouse(), teams, NO_WAIT)

    assert TEAM + 5 in left
    for team_id in set(left) - {TEAM + 5}:
        verify_team(ledger, system.warehouse(), team_id, NO_WAIT)
    with pytest.raises(DatabaseError):
        verify_team(ledger, system.warehouse(), TEAM + 5, NO_WAIT)
    assert {team.team_id for team in system.teams().values() if team.status != "verified"} == {TEAM + 5}


def test_a_copy_that_was_killed_before_its_ledger_is_done_again(system: System, ledger: Ledger) -> None:
    teams = plan(system, ledger)
    copy_together(ledger, system.warehouse(), teams)
    system.postgres.execute("DELETE FROM pdi2_migration.slice")
    system.postgres.execute("UPDATE pdi2_migration.team SET slices_done = 0, rows_copied = 0, status = 'copying'")

    for team_id in copy_together(ledger, system.warehouse(), teams):
        copy_team(ledger, system.warehouse(), team_id)

    assert verify_together(ledger, system.warehouse(), teams, NO_WAIT) == []
    assert system.disagreements() == {}


def test_what_is_copied_is_not_copied_again(system: System, ledger: Ledger) -> None:
    teams = plan(system, ledger)
    copy_team(ledger, system.warehouse(), teams[0])
    copy_together(ledger, system.warehouse(), teams)
    system.ledger().set_failed([teams[1]], "a verification that failed")
    warehouse = Listening(system)

    assert copy_together(ledger, warehouse, teams) == []
    assert warehouse.heard == []
    assert {team.status for team in system.teams().values()} == {"copied"}


def test_a_team_that_grows_meanwhile_is_taken_with_what_is_new(system: System, ledger: Ledger) -> None:
    teams = plan(system, ledger)
    growing = Meanwhile(system, "count_live", lambda: many_ids(system, 10, TEAM + 2))

    assert copy_together(ledger, growing, teams) == []
    assert seen(system, team_id=TEAM + 2).keys() >= {str(number) for number in range(10)}


@pytest.mark.parametrize(("step", "statement"), [("copy", "AS winner"), ("verify", "SHA256")])
def test_a_busy_server_ends_the_try_and_the_next_one_goes_on(live: LiveSystem, step: str, statement: str) -> None:
    for team_id in range(1, 6):
        insert_old(live, [event("+A1", "one", team_id)])
        insert_truth(live, ALICE, 0, "one", team_id)
    ledger = live.ledger()
    enable(live, ledger)
    teams = plan(live, ledger)
    steps: dict[str, Callable[[], list[int]]] = {
        "copy": lambda: copy_together(ledger, live.warehouse(), teams),
        "verify": lambda: verify_together(ledger, live.warehouse(), teams, NO_WAIT),
    }
    if step == "verify":
        steps["copy"]()
    live.server.inject({"match": re.escape(statement), "action": "error", "code": 202})

    with pytest.raises((BusyError, DatabaseError), match="Too many simultaneous"):
        steps[step]()

    assert steps["copy"]() == []
    assert steps["verify"]() == []
    assert live.disagreements() == {}


def test_live_updates_that_replace_copies_are_no_loss(system: System, ledger: Ledger) -> None:
    teams = plan(system, ledger)

    class MergedMeanwhile(Listening):
        def execute(self, name: str, *arguments: Any) -> None:
            super().execute(name, *arguments)
            if name == "copy_by_rule":
                insert_new(system, ALICE, 3, "simple")
                merge(system, Table.NEW)

    warehouse = MergedMeanwhile(system)

    assert copy_together(ledger, warehouse, teams) == []
    assert [parameters["team_ids"] for name, parameters in warehouse.heard if name == "absent"] == [[TEAM]]


def test_after_a_memory_limit_of_the_server_the_next_try_takes_half(live: LiveSystem) -> None:
    for team_id in range(1, 6):
        insert_old(live, [event("+A1", "one", team_id)])
    ledger = live.ledger()
    enable(live, ledger)
    teams = plan(live, ledger)
    limit = "(total) memory limit exceeded: would use 9.01 GiB, maximum: 9.00 GiB"
    live.server.inject({"match": "id_hash", "action": "error", "code": 241, "text": limit})

    with pytest.raises(BusyError, match=f"the 5 teams from team {teams[0]} on was given up.*100 MB instead of 200"):
        copy_together(ledger, live.warehouse(), teams)

    assert {team.status for team in live.teams().values()} == {"failed"}
    warehouse = live.warehouse()
    assert copy_together(ledger, warehouse, teams) == []
    assert warehouse.max_memory_usage == 100_000_000


def test_a_pause_puts_all_of_them_off(system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdi2.core.cluster.pressure.WAIT_IN_SLOT_SECONDS", 0)
    monkeypatch.setattr("pdi2.core.cluster.pressure.LOOK_EVERY_SECONDS", 0)
    teams = plan(system, ledger)
    ledger.record("paused")

    with pytest.raises(WaitError, match=f"The work on {len(TEAMS)} teams from team {teams[0]} on waits"):
        copy_together(ledger, system.warehouse(), teams)
    assert {team.status for team in system.teams().values()} == {"planned"}


def test_only_small_teams_share_and_no_group_is_too_large() -> None:
    rows = {1: SMALL_ROWS + 1, **dict.fromkeys(range(2, 1_002), 900), 2_000: SMALL_ROWS, 2_001: 0}
    groups = together(rows, memory=50 << 20)
    assert [team_id for group in groups for team_id in group.team_ids] == [*range(2, 1_002), 2_000, 2_001]
    assert max(len(group.team_ids) for group in groups) <= TEAMS_AT_ONCE
    assert max(group.rows for group in groups) <= aggregated_at_once(50 << 20)
    assert together({1: 5, 2: SMALL_ROWS + 1}, memory=50 << 20) == [Teams((1,), 5)], "one small team is a list of one"


@pytest.mark.parametrize("most_batches", [1, 2, 7, 100, 1024])
@pytest.mark.parametrize("teams", [1, 2, 1_024, 1_025, 10_000])
def test_every_team_is_in_one_batch(teams: int, most_batches: int) -> None:
    rows = {team_id: 5_000_000 // (10 * team_id) for team_id in range(1, teams + 1)}

    batches = planning.share_out(rows, most_batches)

    assert len(batches) <= most_batches
    assert sorted(team_id for batch in batches for team_id in batch.team_ids) == list(rows)
    assert sum(batch.rows for batch in batches) == sum(rows.values())
    large = sum(count > SMALL_ROWS for count in rows.values())
    assert len(batches) >= min(most_batches, large), "what is not small shares a task only where it must"
    if teams <= most_batches:
        assert [batch.team_ids for batch in batches] == [[team_id] for team_id in rows]


def test_teams_may_be_partitions(system: System) -> None:
    """ClickHouse lets an insert write 100 of them by default (max_partitions_per_insert_block)."""
    team_ids = list(range(1, 121))
    insert_old(system, [event("+A1", team_id=team_id) for team_id in team_ids])
    for team_id in team_ids:
        insert_truth(system, BOB, 1, "id", team_id)
    [[created]] = system.clickhouse.query("SHOW CREATE TABLE person_distinct_id2").result_rows
    system.clickhouse.command("DROP TABLE person_distinct_id2 SYNC")
    system.clickhouse.command(created.replace("ORDER BY", "PARTITION BY team_id ORDER BY"))
    ledger = system.ledger()
    enable(system, ledger)
    plan(system, ledger)
    copy_together(ledger, system.warehouse(), team_ids)
    assert verify_together(ledger, system.warehouse(), team_ids, NO_WAIT) == []
    assert system.disagreements() == {}


def test_a_run_that_plans_again_gets_no_fewer_tasks(system: System) -> None:
    """Airflow 3.1 and 3.2 take a mapped task that has become shorter for a deadlock."""
    insert_old(system, [event("+A1", team_id=team_id) for team_id in (1, 2, 3)])
    for team_id in (1, 2, 3):
        insert_truth(system, ALICE, 0, "id", team_id)
    ledger, warehouse = system.ledger(), system.warehouse()
    enable(system, ledger)
    assert len(planning.freeze(ledger, warehouse, NO_WAIT, 100)) == 3
    copy_team(ledger, warehouse, 1)
    verify_team(ledger, warehouse, 1, NO_WAIT)
    close_run(ledger, NO_WAIT)

    enable(system, ledger)
    again = planning.freeze(ledger, warehouse, NO_WAIT, 100)
    assert sorted(batch.team_ids for batch in again) == [[], [2], [3]]
    assert again[-1].label == "verified already"
    enable(system, another := system.ledger("the next run"))
    assert len(planning.freeze(another, warehouse, NO_WAIT, 100)) == 2
