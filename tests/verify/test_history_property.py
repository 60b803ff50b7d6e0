"""Whatever the application did, and whenever merges ran, in the end the new table says what Postgres says."""

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import pytest
from conftest import ENGINE, System
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from more_itertools import chunked
from pdi2.core.copy.copying import copy_team
from pdi2.core.state.ledger import Ledger
from stories import add_teams, copy_and_verify, enable, merge, plan, stop_merges

from demo.schema import MIGRATION, Table
from demo.switches import READS, WRITES, set_switch
from demo.writer import Message, Writer, deliver

STATE = {
    "posthog_person": "id, uuid, team_id",
    "posthog_persondistinctid": "id, distinct_id, person_id, team_id, version",
}
"""What restoring Postgres brings back."""

TEAMS = (1, 2)
IDS = ("o'brien", "")
EXAMPLES = 3 if ENGINE else int(os.environ.get("PDI2_EXAMPLES", "5"))
"""make test-chaos tries more. An older engine starts again for every statement."""
SECONDS = itertools.count(1_600_000_000)


@dataclass
class Application:
    """A writer for all teams, with what the stories need to know about its past."""

    writer: Writer
    clickhouse: Any
    persons: dict[int, list[UUID]] = field(default_factory=lambda: {team_id: [] for team_id in TEAMS})
    delivered: list[Message] = field(default_factory=list)
    backup: tuple[dict[str, list[Any]], dict[int, list[UUID]]] | None = None

    def create(self, team_id: int, id_: str, no_version: bool = False) -> None:
        """PostHog's column has no default: rows from before it existed have no version, which counts as 0."""
        if not self._exists(team_id, id_):
            self.persons[team_id].append(self.writer.create(team_id, id_))
            if no_version:
                query = "UPDATE posthog_persondistinctid SET version = NULL WHERE team_id = %s AND distinct_id = %s"
                self.writer.postgres.execute(query, [team_id, id_])

    def identify(self, team_id: int, id_: str, person: int) -> None:
        if self._exists(team_id, id_):
            self.writer.identify(team_id, id_, self._person(team_id, person))
        else:
            self.create(team_id, id_)

    def merge_persons(self, team_id: int, loser: int, winner: int) -> None:
        first, second = self._person(team_id, loser), self._person(team_id, winner)
        if first and second and first != second:
            self.writer.merge(team_id, first, second)
            self.persons[team_id].remove(first)

    def relink(self, team_id: int, id_: str) -> None:
        if self._exists(team_id, id_):
            self.writer.relink(team_id, id_)
        else:
            self.create(team_id, id_)

    def delete(self, team_id: int, id_: str, tombstone: str) -> None:
        """Deletes as PostHog does today, with a tombstone above the id's version; as it did in mid-2022, with a
        tombstone of version 0; or as 1.33, which writes nothing to ClickHouse (PostHog's branches 1.31 to 1.33; PostHog
        #12610).
        """
        if self._exists(team_id, id_):
            sent_before = len(self.writer.outbox)
            self.writer.delete(team_id, id_)
            sent = self.writer.outbox[sent_before:]
            if tombstone == "none":
                sent = []
            if tombstone == "of version 0":
                sent = [replace(one, row={**one.row, "version": 0}) if one.table is Table.NEW else one for one in sent]
            self.writer.outbox[sent_before:] = sent

    def back_up(self) -> None:
        postgres = self.writer.postgres
        rows = {
            table: postgres.execute(f"SELECT {columns} FROM {table}".encode()).fetchall()
            for table, columns in STATE.items()
        }
        self.backup = rows, {team_id: list(persons) for team_id, persons in self.persons.items()}

    def restore(self) -> None:
        """Postgres is set back; what was sent to ClickHouse since stays there."""
        if self.backup is None:
            return
        rows, persons = self.backup
        self.deliver(1.0, newest_first=False)
        self.writer.postgres.execute("TRUNCATE posthog_persondistinctid, posthog_person")
        with self.writer.postgres.cursor() as cursor:
            for table, columns in STATE.items():
                values = ", ".join(["%s"] * len(columns.split(",")))
                cursor.executemany(f"INSERT INTO {table} ({columns}) VALUES ({values})".encode(), rows[table])
        self.persons = {team_id: list(uuids) for team_id, uuids in persons.items()}

    def write_every_id(self, no_version: bool) -> None:
        """The application's next write of each id: the version plus one, or 0 for an id that comes back.

        If the application's own tombstone is there, it hides such an id (PostHog #12610), and no migration may change
        that.
        """
        newest = (
            "SELECT team_id, distinct_id FROM person_distinct_id2 GROUP BY 1, 2 "
            "HAVING argMax(is_deleted, version) = 1 AND max(version) >= 0"
        )
        hidden = set(map(tuple, self.clickhouse.query(newest).result_rows))
        for team_id, id_ in itertools.product(TEAMS, IDS):
            if self._exists(team_id, id_):
                self.writer.identify(team_id, id_, self.writer.create(team_id, f"another {next(SECONDS)}"))
            elif (team_id, id_) not in hidden:
                self.create(team_id, id_, no_version)
        self.deliver(1.0, newest_first=False)

    def deliver(self, share: float, newest_first: bool) -> None:
        """Some of what is on its way arrives, in any order, because Kafka promises none between two tables."""
        outbox = self.writer.outbox
        count = round(share * len(outbox))
        self._deliver(outbox[-count:][::-1] if newest_first and count else outbox[:count])
        self.writer.outbox = outbox[: len(outbox) - count] if newest_first else outbox[count:]

    def redeliver(self, place: int, count: int) -> None:
        if self.delivered:
            start = place % len(self.delivered)
            deliver(self.clickhouse, self.delivered[start : start + count])

    def _deliver(self, messages: list[Message]) -> None:
        """One insert per few messages, because a large insert would collapse most pairs before anybody saw them."""
        for few in chunked(messages, 2):
            deliver(self.clickhouse, few)
        self.delivered += messages

    def _exists(self, team_id: int, id_: str) -> bool:
        query = "SELECT 1 FROM posthog_persondistinctid WHERE team_id = %s AND distinct_id = %s"
        return self.writer.postgres.execute(query, [team_id, id_]).fetchone() is not None

    def _person(self, team_id: int, number: int) -> Any:
        persons = self.persons[team_id]
        return persons[number % len(persons)] if persons else None


def operation(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(name), *arguments)


teams, ids, numbers = st.sampled_from(TEAMS), st.sampled_from(IDS), st.integers(0, 5)
links = st.one_of(
    operation("create", teams, ids, st.booleans()),
    operation("identify", teams, ids, numbers),
    operation("merge_persons", teams, numbers, numbers),
    operation("relink", teams, ids),
)
changes = st.one_of(
    *[links] * 4,
    operation("delete", teams, ids, st.sampled_from(["above", "of version 0", "none"])),
    operation("back_up"),
    operation("restore"),
)
transports = st.one_of(
    operation("deliver", st.sampled_from([0.3, 1.0]), st.booleans()),
    operation("redeliver", st.integers(0, 50), st.integers(1, 4)),
    operation("optimize", st.sampled_from(Table)),
)
long = st.lists(st.one_of(changes, changes, transports), min_size=12, max_size=24)
short = st.lists(st.one_of(changes, changes, transports), max_size=10)


def live(system: System, application: Application, history: list[tuple[Any, ...]]) -> None:
    for name, *arguments in history:
        if name == "optimize":
            merge(system, *arguments)
        else:
            getattr(application, name)(*arguments)


def empty(system: System, ledger: Ledger) -> None:
    """As on the first day; only the tables stay."""
    system.postgres.execute("TRUNCATE posthog_persondistinctid, posthog_person, posthog_team")
    system.postgres.execute("UPDATE posthog_asyncmigration SET status = 0, progress = 0 WHERE name = %s", [MIGRATION])
    ledger.create()
    system.postgres.execute(
        "TRUNCATE pdi2_migration.run, pdi2_migration.team, pdi2_migration.slice, pdi2_migration.finding, "
        "pdi2_migration.event, pdi2_migration.certificate"
    )
    for key in (READS, WRITES):
        set_switch(system.postgres, key, "old")
    for table in Table:
        system.clickhouse.command(f"TRUNCATE TABLE {table}")
    add_teams(system, *TEAMS)


@pytest.fixture
def fresh(system: System) -> Callable[[], tuple[Application, Ledger]]:
    """One pair of databases for all examples, emptied before each."""
    ledger = system.ledger()

    def start() -> tuple[Application, Ledger]:
        empty(system, ledger)
        return Application(system.writer(clock=lambda: next(SECONDS) // 3), system.clickhouse), ledger

    return start


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=long, dual=short, copied=short, late=st.booleans(), after=short, no_version=st.booleans())
def test_the_new_table_agrees_with_postgres_after_any_history_and_the_next_write(
    system: System,
    fresh: Callable[[], tuple[Application, Ledger]],
    before: list[tuple[Any, ...]],
    dual: list[tuple[Any, ...]],
    copied: list[tuple[Any, ...]],
    late: bool,
    after: list[tuple[Any, ...]],
    no_version: bool,
) -> None:
    application, ledger = fresh()
    live(system, application, before)
    enable(system, ledger)
    live(system, application, dual)
    if not late:
        application.deliver(1.0, newest_first=False)
    warehouse = system.warehouse()
    for team_id in plan(system, ledger):
        copy_team(ledger, warehouse, team_id)
    live(system, application, copied)
    application.deliver(1.0, newest_first=False)

    copy_and_verify(system, ledger, *plan(system, ledger))

    assert_right_now_and_after_the_next_write(system, application, no_version)
    live(system, application, after)
    application.deliver(1.0, newest_first=True)
    ledger.verify_all_again()
    copy_and_verify(system, ledger, *plan(system, ledger))
    assert_right_now_and_after_the_next_write(system, application, no_version)


def assert_right_now_and_after_the_next_write(system: System, application: Application, no_version: bool) -> None:
    assert system.disagreements() == {}
    merge(system)
    assert system.disagreements() == {}
    assert rows_above_postgres(system) == []
    application.write_every_id(no_version)
    assert system.disagreements() == {}
    merge(system)
    assert system.disagreements() == {}


def rows_above_postgres(system: System) -> list[tuple[Any, ...]]:
    """What would hide an id's next write, except the application's own tombstones for ids that Postgres lacks."""
    versions = {
        (team_id, id_): version
        for team_id, id_, version in system.postgres.execute(
            "SELECT team_id, distinct_id, coalesce(version, 0) FROM posthog_persondistinctid"
        )
    }
    newest = (
        "SELECT team_id, distinct_id, max(version), argMax(is_deleted, version) FROM person_distinct_id2 GROUP BY 1, 2"
    )
    return [
        (team_id, id_, version)
        for team_id, id_, version, is_deleted in system.clickhouse.query(newest).result_rows
        if version > versions.get((team_id, id_), version if is_deleted else -1)
    ]


in_order = st.lists(
    st.one_of(
        *[links] * 7,
        operation("delete", teams, ids, st.just("above")),
        *[operation("deliver", st.just(1.0), st.just(False))] * 2,
        operation("optimize", st.sampled_from(Table)),
    ),
    min_size=12,
    max_size=24,
)


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=in_order, dual=st.lists(links, max_size=3))
def test_what_arrived_once_and_in_order_is_copied_with_nothing_left_to_repair(
    system: System,
    fresh: Callable[[], tuple[Application, Ledger]],
    before: list[tuple[Any, ...]],
    dual: list[tuple[Any, ...]],
) -> None:
    """In the property above, verify repairs what the copy breaks. Here only the copy runs, so its faults show."""
    application, ledger = fresh()
    live(system, application, before)
    enable(system, ledger)
    live(system, application, dual)
    application.deliver(1.0, newest_first=False)
    warehouse = system.warehouse()
    for team_id in plan(system, ledger):
        copy_team(ledger, warehouse, team_id)

    assert system.disagreements() == {}
    merge(system)
    assert system.disagreements() == {}


@pytest.mark.slow
def test_the_histories_reach_what_is_hard(system: System, fresh: Callable[[], tuple[Application, Ledger]]) -> None:
    """One history written by hand, with every operation, so that the property above cannot pass by doing nothing."""
    stop_merges(system)
    application, ledger = fresh()
    live(
        system,
        application,
        [
            *[("create", team_id, id_) for team_id in TEAMS for id_ in IDS],
            ("deliver", 1.0, False),
            ("identify", 1, "", 0),
            ("merge_persons", 1, 0, 1),
            ("relink", 2, ""),
            ("delete", 2, "o'brien", "above"),
            ("create", 2, "o'brien"),
            ("deliver", 0.3, True),
            ("redeliver", 0, 4),
            ("optimize", Table.NEW),
            ("deliver", 1.0, False),
        ],
    )
    assert system.disagreements(Table.OLD) == {1: {""}, 2: {""}}
    enable(system, ledger)
    live(system, application, [("delete", 1, "", "none"), ("create", 1, ""), ("deliver", 1.0, False)])
    assert system.disagreements() == {1: {"o'brien"}, 2: set(IDS)}

    copy_and_verify(system, ledger, *plan(system, ledger))
    assert system.disagreements() == {}
