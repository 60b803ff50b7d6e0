"""Traffic goes on while a team is verified: one wait tells what is only on its way from what is wrong."""

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from conftest import System
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.verify.verifying import verify_team
from stories import (
    ALICE,
    BOB,
    CAROL,
    TEAM,
    add_teams,
    enable,
    insert_new,
    insert_truth,
    plan,
    rows_of,
    seen,
    skip_waits,
    stop_merges,
)

from demo.schema import Table

IN_FLIGHT = Settings(in_flight_seconds=30)


@pytest.fixture
def ledger(system: System) -> Ledger:
    stop_merges(system)
    ledger = system.ledger()
    add_teams(system, TEAM)
    enable(system, ledger)
    return ledger


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return skip_waits(monkeypatch)


def verify(system: System, ledger: Ledger, warehouse: Warehouse | None = None) -> dict[str, int]:
    plan(system, ledger)
    return verify_team(ledger, warehouse or system.warehouse(), TEAM, IN_FLIGHT)


class Hot:
    """An id that goes from person to person; at each turn what was sent before arrives, or is lost."""

    def __init__(self, system: System, rows_arrive: bool) -> None:
        self.writer = system.writer()
        self.persons = [self.writer.create(TEAM, f"of person {number}") for number in range(3)]
        self.writer.create(TEAM, "hot")
        self.writer.flush()
        self.rows_arrive = rows_arrive
        self.move()

    def move(self) -> None:
        if self.rows_arrive:
            self.writer.flush()
        self.writer.outbox.clear()
        self.writer.identify(TEAM, "hot", self.persons.pop())


def test_many_portions_of_differences_share_one_wait(
    system: System, ledger: Ledger, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdi2.core.verify.digesting.ROWS_A_BUCKET", 1)
    monkeypatch.setattr("pdi2.core.verify.digesting.LISTED_AT_ONCE", 1)
    monkeypatch.setattr("pdi2.core.verify.comparing.KEYS_AT_ONCE", 3)
    monkeypatch.setattr("pdi2.core.verify.settling.REPAIRED_AT_ONCE", 4)
    for number in range(12):
        insert_truth(system, UUID(int=100 + number), 1, f"id {number}")
        insert_new(system, ALICE, 0, f"id {number}")

    assert verify(system, ledger) == {"stale": 12}
    assert waits == [30]
    assert system.disagreements() == {}


def test_very_many_differences_share_a_few_waits_and_little_memory(
    system: System, ledger: Ledger, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdi2.core.verify.settling.REPAIRED_AT_ONCE", 4)
    monkeypatch.setattr("pdi2.core.verify.waiting.LISTS_HELD", 2)
    for number in range(12):
        insert_truth(system, UUID(int=100 + number), 1, f"id {number}")

    assert verify(system, ledger) == {"missing": 12}
    assert waits == [30, 30], "the second list became old during the first wait"
    assert system.disagreements() == {}


def test_a_long_comparison_is_not_silent(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pdi2.core.verify.waiting.TELL_EVERY_SECONDS", 0.1)
    monkeypatch.setattr("pdi2.core.verify.settling.TELL_EVERY_SECONDS", 0)
    monkeypatch.setattr("pdi2.core.verify.settling.REPAIRED_AT_ONCE", 4)
    for number in range(12):
        insert_truth(system, UUID(int=100 + number), 1, f"id {number}")

    plan(system, ledger)
    verify_team(ledger, system.warehouse(), TEAM, Settings(in_flight_seconds=0.5))
    told = [record.getMessage() for record in log.records]
    assert sum("the ids that differ are looked at once more" in line for line in told) >= 4, told
    assert "Ids looked at once more so far: 12, of which still differed: 12" in told


def test_what_a_repair_inserts_leaves_no_garbage_that_only_the_collector_would_find(system: System) -> None:
    """`settle` runs without the collector, and clickhouse-connect's InsertContext refers to itself."""
    rows = [(TEAM, f"id {number}", UUID(int=number)) for number in range(2_000)]
    gc.collect()
    gc.disable()
    try:
        system.warehouse().insert("person_distinct_id2", ["team_id", "distinct_id", "person_id"], rows)
        del rows
        assert gc.collect() < 1_000
    finally:
        gc.enable()


def test_a_team_that_agrees_is_not_waited_for(system: System, ledger: Ledger, waits: list[float]) -> None:
    insert_truth(system, ALICE, 0)
    insert_new(system, ALICE, 0)
    assert verify(system, ledger) == {}
    assert waits == []


def test_an_id_that_moves_all_the_time_is_in_flight_as_long_as_its_rows_arrive(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot = Hot(system, rows_arrive=True)
    skip_waits(monkeypatch, hot.move)
    assert verify(system, ledger) == {}
    assert system.disagreements() == {TEAM: {"hot"}}, "its last row is on its way"

    hot.writer.flush()
    assert system.disagreements() == {}
    assert 0 not in {row[6] for row in rows_of(system, Table.NEW)}, "no row but the application's, with their offsets"


def test_an_id_that_moves_all_the_time_and_whose_rows_are_lost_is_wrong(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot = Hot(system, rows_arrive=False)
    skip_waits(monkeypatch, hot.move)
    assert verify(system, ledger) == {"stale": 1}
    assert system.disagreements() == {}


def test_what_postgres_changes_during_its_repair_is_in_flight(
    system: System, ledger: Ledger, waits: list[float]
) -> None:
    """The id comes back for another person, so the repair inserts a second row, and then moves on once more."""

    def say(person: UUID, version: int) -> None:
        system.postgres.execute("DELETE FROM posthog_persondistinctid")
        insert_truth(system, person, version)

    class Repair(Warehouse):
        inserts = 0

        def rows(self, name: str, *arguments: Any) -> list[tuple[Any, ...]]:
            if name == "rows_of_ids" and self.inserts == 1:
                say(CAROL, 0)
            return super().rows(name, *arguments)

        def insert(self, table: str, columns: list[str], rows: Sequence[Sequence[Any]]) -> None:
            super().insert(table, columns, rows)
            self.inserts += bool(rows)
            if self.inserts == 2:
                say(ALICE, 1)

    insert_truth(system, BOB, 0)
    insert_new(system, ALICE, 0)
    warehouse = system.warehouse(kind=Repair)
    assert verify(system, ledger, warehouse) == {"wrong_person": 1}
    assert warehouse.inserts == 2
    assert seen(system) == {"id": CAROL}
    insert_new(system, ALICE, 1)
    assert system.disagreements() == {}


def test_a_row_that_is_still_to_be_deleted_does_not_count_as_repaired(
    system: System, ledger: Ledger, waits: list[float]
) -> None:
    """A DELETE takes one part after the other. The row that contradicted ours is gone, and ours, which has to go too
    because Postgres has moved on meanwhile, is still there."""
    in_parts: list[Callable[[], None]] = []

    class Slow(Warehouse):
        def rows(self, name: str, *arguments: Any) -> list[tuple[Any, ...]]:
            if name == "rows_of_ids" and in_parts:
                in_parts.pop()()
            elif name == "rows_of_ids" and not self.listed:
                self.listed = True
                system.postgres.execute("DELETE FROM posthog_persondistinctid")
                insert_truth(system, CAROL, 0)
            return super().rows(name, *arguments)

        listed = False

        def remove(self, name: str, parameters: Mapping[str, Any]) -> None:
            delete = f"ALTER TABLE {Table.NEW} DELETE WHERE person_id = '{ALICE}' SETTINGS mutations_sync = 2"
            system.clickhouse.command(delete)
            in_parts.append(partial(super().remove, name, parameters))

    insert_truth(system, BOB, 0)
    insert_new(system, ALICE, 0)
    assert verify(system, ledger, system.warehouse(kind=Slow)) == {"wrong_person": 1}
    assert seen(system) == {"id": CAROL}


@pytest.mark.parametrize("arrives", [True, False], ids=["and arrives later", "and is lost"])
def test_a_deletion_during_the_wait_is_in_flight(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    writer = system.writer()
    writer.create(TEAM, "leaves")

    def leave() -> None:
        if arrives:
            writer.flush()
        else:
            writer.outbox.clear()
        writer.delete(TEAM, "leaves")

    insert_new(system, ALICE, -5, "leaves")
    skip_waits(monkeypatch, leave)
    assert verify(system, ledger) == ({} if arrives else {"resurrected": 1})
    writer.flush()
    assert seen(system) == {}


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM posthog_persondistinctid WHERE distinct_id = 'id'",
        "UPDATE posthog_persondistinctid SET version = 9 WHERE distinct_id = 'id'",
    ],
)
def test_a_row_that_stood_above_postgres_before_the_wait_is_not_in_flight_after_it(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Postgres was restored from a backup, and goes on from there."""
    insert_new(system, BOB, 9)
    insert_truth(system, ALICE, 3)
    skip_waits(monkeypatch, lambda: system.postgres.execute(change.encode()))
    assert sum(verify(system, ledger).values()) == 1
    assert system.disagreements() == {}


def test_an_id_that_moves_on_during_its_repair_is_no_failure(system: System, ledger: Ledger) -> None:
    """Its repair is out of date at once, and the application's own row is on its way."""
    writer = system.writer()
    carol = writer.create(TEAM, "carol's")
    writer.flush()
    writer.create(TEAM, "id")
    writer.outbox.clear()

    class MovedMeanwhile(Warehouse):
        def insert(self, table: str, columns: list[str], rows: Sequence[Sequence[Any]]) -> None:
            super().insert(table, columns, rows)
            writer.identify(TEAM, "id", carol)

    warehouse = system.warehouse(kind=MovedMeanwhile)
    plan(system, ledger)
    assert verify_team(ledger, warehouse, TEAM, Settings(in_flight_seconds=0)) == {"missing": 1}
    assert system.teams()[TEAM].status == "verified"
    writer.flush()
    assert system.disagreements() == {}


def test_ids_of_any_length_are_looked_at(system: System, ledger: Ledger) -> None:
    for number in range(3):
        insert_new(system, ALICE, 0, f"{number}" * 150_000)
    plan(system, ledger)
    assert verify_team(ledger, system.warehouse(), TEAM, Settings(in_flight_seconds=0)) == {"resurrected": 3}
    assert seen(system) == {}


def test_the_window_is_a_quarter_of_the_settle_time_unless_it_is_given() -> None:
    assert Settings.validated({"settle_seconds": 80, "in_flight_seconds": None}).in_flight == 20
    assert Settings.validated({"settle_seconds": 80, "in_flight_seconds": 0}).in_flight == 0
    assert Settings.validated({"settle_seconds": 80}, {"in_flight_seconds": 1.5}).in_flight == 1.5


def test_the_proof_of_the_dual_write_leaves_time_for_a_long_window() -> None:
    long = Settings(settle_seconds=10, read_cache_seconds=0, in_flight_seconds=600)
    assert long.proof_limit_seconds > long.in_flight + long.settle_seconds
