"""Between the last verification and the switch: what changed since is compared again, and nothing else."""

import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from conftest import ENGINE, LOCAL, LiveSystem, System
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import BusyError
from pdi2.core.plan import mutations
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.switch.gate import switch_reads
from pdi2.core.verify.rechecking import MOST_CHANGED, _touched
from pdi2.core.verify.settling import VerifyError
from pdi2.core.verify.verifying import verify_changes, verify_team
from stories import (
    ALICE,
    BOB,
    MEGABYTE,
    NO_WAIT,
    TEAM,
    Listening,
    Meanwhile,
    copy_and_verify,
    dump,
    enable,
    insert_new,
    insert_truth,
    migrate,
    plan,
    skip_waits,
    stop_merges,
    two_ids_each,
    until,
)

from demo.writer import Writer

OTHER = TEAM + 1


@pytest.fixture
def ledger(system: System) -> Ledger:
    """Two teams of two ids each, verified and ready for the switch."""
    stop_merges(system)
    two_ids_each(system, TEAM, OTHER)
    ledger = system.ledger()
    migrate(system, ledger)
    return ledger


def switch(system: System, ledger: Ledger, settings: Settings = NO_WAIT) -> Listening:
    warehouse = Listening(system)
    switch_reads(ledger, warehouse, settings)
    assert system.status() == 2
    return warehouse


def rechecked(system: System) -> dict[str, int]:
    return system.value("SELECT detail -> 'rechecked' FROM pdi2_migration.event WHERE what = 'reads_switched'")


def findings(system: System) -> list[tuple[Any, ...]]:
    return system.postgres.execute(
        "SELECT team_id, distinct_id, kind, repaired FROM pdi2_migration.finding ORDER BY 1, 2"
    ).fetchall()


def lost(system: System, change: Callable[[Writer], object]) -> None:
    """A change that reached only Postgres."""
    writer = system.writer()
    change(writer)
    writer.outbox.clear()


def relink(system: System) -> None:
    bob = system.value(f"SELECT id FROM posthog_person WHERE team_id = {TEAM} AND uuid = '{BOB}'")
    system.postgres.execute(
        "UPDATE posthog_persondistinctid SET person_id = %s, version = version + 1 "
        "WHERE team_id = %s AND distinct_id = 'id'",
        [bob, TEAM],
    )


def test_where_nothing_changed_nothing_is_compared(system: System, ledger: Ledger) -> None:
    warehouse = switch(system, ledger)
    assert (warehouse.ids, warehouse.teams, rechecked(system)) == (set(), set(), {})


@pytest.mark.skipif(LOCAL, reason="clickhouse-local of that time has no system.mutations")
def test_our_own_mutations_cause_no_recheck(system: System, ledger: Ledger) -> None:
    insert_new(system, BOB, 9, "id")
    warehouse = system.warehouse()
    assert verify_team(ledger, warehouse, TEAM, NO_WAIT) == {"ahead": 1}
    warehouse.execute("reach_every_replica")
    found = mutations.listed(warehouse)
    assert (len(found), {one.is_ours for one in found}) == (2, {True})
    assert switch(system, ledger).teams == set()


# By name: what happens after the verification, the findings, and the teams compared as a whole.
CHANGES: dict[str, tuple[Callable[[System], object], list[tuple[Any, ...]], set[int]]] = {
    "a link that Postgres alone knows": (relink, [(TEAM, "id", "wrong_person", True)], set()),
    "an id that Postgres alone knows": (
        lambda system: lost(system, lambda writer: writer.create(TEAM, "new")),
        [(TEAM, "new", "missing", True)],
        set(),
    ),
    "a deletion that Postgres alone knows": (
        lambda system: lost(system, lambda writer: writer.delete(TEAM, "other")),
        [(TEAM, "other", "resurrected", True)],
        {TEAM},
    ),
    "a deletion, and an id in its place": (
        lambda system: lost(system, lambda writer: (writer.delete(TEAM, "other"), writer.create(TEAM, "new"))),
        [(TEAM, "new", "missing", True), (TEAM, "other", "resurrected", True)],
        {TEAM},
    ),
    "a link and a VACUUM that freezes it": (
        lambda system: (relink(system), system.postgres.execute("VACUUM FREEZE posthog_persondistinctid")),
        [(TEAM, "id", "wrong_person", True)],
        set(),
    ),
    "a row that somebody else's mutation removed": (
        lambda system: system.clickhouse.command(
            f"ALTER TABLE person_distinct_id2 DELETE WHERE team_id = {TEAM} AND distinct_id = 'other'",
            settings={"mutations_sync": 2},
        ),
        [(TEAM, "other", "missing", True)],
        {TEAM, OTHER},
    ),
    "a row that somebody else wrote": (
        lambda system: system.clickhouse.command(
            "INSERT INTO person_distinct_id2 (team_id, distinct_id, person_id, is_deleted, version, _timestamp) "
            f"VALUES ({TEAM}, 'stranger', '{ALICE}', 0, 0, now())"
        ),
        [(TEAM, "stranger", "resurrected", True)],
        set(),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_was_lost_is_found_and_repaired(system: System, ledger: Ledger, name: str) -> None:
    happens, found, as_a_whole = CHANGES[name]
    happens(system)
    assert system.disagreements() == {TEAM: {id_ for _, id_, _, _ in found}}

    warehouse = switch(system, ledger)

    assert findings(system) == found
    assert rechecked(system) == {kind: 1 for _, _, kind, _ in found}
    assert system.disagreements() == {}
    assert warehouse.teams == as_a_whole
    assert {team_id for team_id, _ in warehouse.ids} == {TEAM}


def test_a_change_that_was_not_committed_at_the_first_look_is_found(system: System, ledger: Ledger) -> None:
    """Transactions newer than Postgres's snapshot are open at the recheck; they must not hide the change."""
    with psycopg.connect(system.uri) as late:
        late.execute(
            "UPDATE posthog_persondistinctid SET version = 1 WHERE distinct_id = 'id' AND team_id = %s", [TEAM]
        )
        verify_team(ledger, system.warehouse(), TEAM, NO_WAIT)
        verify_team(ledger, system.warehouse(), OTHER, NO_WAIT)
    with psycopg.connect(system.uri) as one, psycopg.connect(system.uri) as another:
        for open_one in (one, another):
            open_one.execute("SELECT txid_current()")
        assert switch(system, ledger).ids == {(TEAM, b"id")}


def test_what_somebodys_mutation_removed_is_compared_once(system: System, ledger: Ledger) -> None:
    """Though ClickHouse's clock was set back by an hour since the teams were verified."""
    system.postgres.execute(
        "UPDATE pdi2_migration.team SET mark = jsonb_set(mark, '{at}', to_jsonb((mark ->> 'at')::bigint + 3600))"
    )
    delete = "ALTER TABLE person_distinct_id2 DELETE WHERE distinct_id = 'other'"
    system.clickhouse.command(delete, settings={"mutations_sync": 2})
    warehouse = Listening(system)
    assert verify_changes(ledger, warehouse, NO_WAIT) == {"missing": 2}
    assert warehouse.teams == {TEAM, OTHER}
    assert switch(system, ledger).teams == set()


@pytest.mark.parametrize("dies", ["insert", "newest_rows"], ids=["before the insert", "before it is checked"])
def test_a_repair_that_died_leaves_open_findings_and_so_a_comparison_of_the_team(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    """What it had repaired shows in neither database as a change."""

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    lost(system, lambda writer: relink(system))
    with monkeypatch.context() as patch:
        patch.setattr(f"pdi2.core.verify.settling.{dies}", die)
        with pytest.raises(KeyboardInterrupt):
            switch(system, ledger)
    assert findings(system) == [(TEAM, "id", "wrong_person", False)]
    assert switch(system, ledger).teams == {TEAM}
    assert system.disagreements() == {}


@pytest.mark.skipif(bool(ENGINE), reason="there no mutation outlives its statement")
def test_what_a_mutation_removed_before_it_was_killed_is_repaired(system: System, ledger: Ledger) -> None:
    """KILL MUTATION takes it off ClickHouse's list; the parts that it has rewritten stay as they are."""
    writer = system.writer()
    writer.create(TEAM, "poison")
    writer.flush()
    delete = "DELETE WHERE distinct_id = 'other' OR throwIf(distinct_id = 'poison', 'no such luck')"
    system.clickhouse.command(f"ALTER TABLE person_distinct_id2 {delete}", settings={"mutations_sync": 0})
    until(lambda: system.disagreements() and mutations.failing(mutations.listed(system.warehouse())))

    with pytest.raises(BusyError, match="no such luck"):
        switch(system, ledger)
    system.clickhouse.command(f"KILL MUTATION WHERE database = '{system.database}'")

    assert switch(system, ledger).teams == {TEAM, OTHER}
    assert system.disagreements() == {}


@pytest.mark.parametrize("gone", ["TRUNCATE TABLE", "ALTER TABLE person_distinct_id2 DETACH PARTITION tuple() --"])
def test_rows_that_left_without_a_trace_are_noticed(system: System, ledger: Ledger, gone: str) -> None:
    """Neither leaves a mutation or a newer row, nor does a part that is lost with a replica."""
    system.clickhouse.command(f"{gone} person_distinct_id2")
    assert switch(system, ledger).teams == {TEAM, OTHER}
    assert {one[2:] for one in findings(system)} == {("missing", True)}
    assert system.disagreements() == {}


def test_a_server_that_was_restored_from_a_snapshot_of_its_disk_is_compared_as_a_whole(
    live: LiveSystem, tmp_path: Path
) -> None:
    """The table is the same one, with as many rows as ids, and an update that was verified is gone from it."""
    two_ids_each(live, TEAM, OTHER)
    ledger = live.ledger()
    migrate(live, ledger)
    snapshot = tmp_path / "snapshot"

    def with_the_server_down(copy_from: Path, copy_to: Path) -> None:
        live.server.stop()
        shutil.rmtree(copy_to, ignore_errors=True)
        shutil.copytree(copy_from, copy_to, symlinks=True)
        live.server.start()

    with_the_server_down(live.server.path, snapshot)
    relink(live)
    insert_new(live, BOB, 1, "id")
    copy_and_verify(live, ledger, TEAM, OTHER)
    with_the_server_down(snapshot, live.server.path)
    assert live.disagreements() == {TEAM: {"id"}}

    assert switch(live, ledger).teams == {TEAM, OTHER}
    assert live.disagreements() == {}


@pytest.mark.slow
def test_what_was_touched_need_not_fit_into_memory(system: System) -> None:
    system.clickhouse.command(
        "INSERT INTO person_distinct_id2 (team_id, distinct_id, _timestamp) "
        f"SELECT {TEAM}, concat('an id that is as long as most are ', toString(number)), 1 FROM numbers(2000000)"
    )
    warehouse = system.warehouse(max_memory_usage=170 * MEGABYTE)
    with pytest.raises(DatabaseError, match="memory limit"):
        warehouse.rows("touched_ids", {"team_ids": [TEAM], "since": [0], "most": MOST_CHANGED})
    assert len(_touched(warehouse, {TEAM: 0})[TEAM]) == MOST_CHANGED + 1


def test_only_what_changed_is_looked_at(system: System, ledger: Ledger) -> None:
    writer = system.writer()
    writer.relink(TEAM, "id")
    writer.flush()
    warehouse = switch(system, ledger)
    assert (warehouse.ids, warehouse.teams) == ({(TEAM, b"id")}, set())
    assert findings(system) == []


def test_a_change_on_its_way_is_no_finding(system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = system.writer()
    carol = writer.create(TEAM, "carol's")
    writer.flush()
    writer.identify(TEAM, "id", carol)
    writer.delete(TEAM, "other")
    waits = skip_waits(monkeypatch, writer.flush)

    switch(system, ledger, Settings(in_flight_seconds=30))

    assert (waits, findings(system), rechecked(system)) == ([30], [], {})
    assert system.disagreements() == {}


@pytest.mark.parametrize(
    "mark",
    [
        "NULL",
        "jsonb_set(mark, '{xid}', '999999999999')",
        "jsonb_set(mark, '{xid}', '-9999999999')",
        "jsonb_set(mark, '{server}', '\"another\"')",
    ],
)
def test_where_the_mark_says_nothing_the_team_is_compared_as_a_whole(system: System, ledger: Ledger, mark: str) -> None:
    """The ledger is from an earlier release, the server is another one, or the verification was long ago."""
    relink(system)
    system.postgres.execute(f"UPDATE pdi2_migration.team SET mark = {mark} WHERE team_id = {TEAM}".encode())
    assert switch(system, ledger).teams == {TEAM}
    assert findings(system) == [(TEAM, "id", "wrong_person", True)]


def test_very_many_changes_are_compared_as_a_whole(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdi2.core.verify.rechecking.MOST_CHANGED", 1)
    system.postgres.execute("UPDATE posthog_persondistinctid SET version = 1 WHERE team_id = %s", [TEAM])
    system.clickhouse.command(
        "INSERT INTO person_distinct_id2 (team_id, distinct_id, person_id, version, _timestamp) "
        f"SELECT {OTHER}, toString(number), '{ALICE}', 0, now() FROM numbers(9)"
    )
    assert switch(system, ledger).teams == {TEAM, OTHER}
    assert system.disagreements() == {}


def test_each_teams_changes_count_from_its_own_verification(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One team was verified in a trial long ago, another just now, with more rows that are older than that."""
    monkeypatch.setattr("pdi2.core.verify.rechecking.MOST_CHANGED", 2)
    system.postgres.execute(
        f"UPDATE pdi2_migration.team SET mark = mark || '{{\"at\": 0}}' WHERE team_id = {TEAM}".encode()
    )
    insert_new(system, ALICE, 0, "id", "other")
    system.clickhouse.command(
        "INSERT INTO person_distinct_id2 (team_id, distinct_id, person_id, version, _timestamp) SELECT "
        f"{OTHER}, if(number = 49, 'new', toString(number)), '{ALICE}', 0, if(number = 49, now(), 0) FROM numbers(50)"
    )
    assert OTHER not in switch(system, ledger).teams
    assert (OTHER, "new", "resurrected", True) in findings(system)


def test_a_team_that_was_compared_as_a_whole_is_known_as_it_was_then(system: System, ledger: Ledger) -> None:
    """The switch was put off, and an id that is newer than the verification was deleted, as PostHog 1.33 deletes."""
    insert_truth(system, ALICE, 0, "newer")
    system.postgres.execute("UPDATE pdi2_migration.team SET mark = mark || '{\"rows\": 99}'")
    assert verify_changes(ledger, system.warehouse(), NO_WAIT) == {"missing": 1}
    assert verify_changes(ledger, system.warehouse(), NO_WAIT) == {}
    system.postgres.execute("DELETE FROM posthog_persondistinctid WHERE distinct_id = 'newer'")
    assert switch(system, ledger).teams == {TEAM}
    assert system.disagreements() == {}


def test_many_repairs_are_compared_as_a_whole_once(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdi2.core.verify.rechecking.MOST_CHANGED", 1)
    system.postgres.execute(
        "INSERT INTO pdi2_migration.finding (team_id, distinct_id, kind, repaired, found_at) SELECT %s, n::text, "
        "'missing', true, now() - days FROM generate_series(1, 3) AS n, (VALUES (interval '2 days')) AS ago (days)",
        [OTHER],
    )
    assert switch(system, ledger).teams == set(), "repaired before the last verification, which saw them"


def test_a_repair_that_is_lost_with_its_part_is_made_again(system: System, ledger: Ledger) -> None:
    """ClickHouse does not fsync inserts by default, so a crash of the host can take the newest parts."""
    relink(system)
    assert verify_team(ledger, system.warehouse(), TEAM, NO_WAIT) == {"wrong_person": 1}
    part = system.clickhouse.command("SELECT any(_part) FROM person_distinct_id2 WHERE version = 1")
    system.clickhouse.command(f"ALTER TABLE person_distinct_id2 DROP PART '{part}'")
    assert system.disagreements() == {TEAM: {"id"}}
    assert switch(system, ledger).teams == set()
    assert system.disagreements() == {}


def test_a_difference_that_cannot_be_repaired_stops_the_switch(system: System, ledger: Ledger) -> None:
    class Undone(Warehouse):
        """Somebody deletes at once what is written."""

        def insert(self, table: str, columns: list[str], rows: Sequence[Sequence[Any]]) -> None:
            super().insert(table, columns, rows)
            self.command(f"DELETE FROM {table} WHERE version = 1")

    relink(system)
    before = {name: rows for name, rows in dump(system).items() if name.startswith("public")}
    warehouse = system.warehouse(kind=Undone)
    with pytest.raises(
        VerifyError, match=r'after the repair.\nTeam 7: 1 id, such as "id".*Reads stay on the old table.*run again'
    ):
        switch_reads(ledger, warehouse, NO_WAIT)
    assert {name: rows for name, rows in dump(system).items() if name.startswith("public")} == before
    assert findings(system) == [(TEAM, "id", "wrong_person", False)]

    again = system.ledger("the next run")
    enable(system, again)
    assert plan(system, again) == []
    switch(system, again)
    assert findings(system) == [(TEAM, "id", "wrong_person", True)]
    assert system.disagreements() == {}


def test_what_an_audit_finds_meanwhile_stays_open(system: System, ledger: Ledger) -> None:
    """It may have gone wrong after the comparison, which then says nothing about it."""

    def audit_finds(distinct_id: str) -> None:
        system.ledger("an audit").add_findings(
            [{"team_id": TEAM, "distinct_id": distinct_id, "kind": "stale", "repaired": False}]
        )

    audit_finds("before")
    warehouse = Meanwhile(system, "digest_new", lambda: audit_finds("during the recheck"))
    assert verify_changes(ledger, warehouse, NO_WAIT) == {}
    assert findings(system) == [(TEAM, "before", "stale", True), (TEAM, "during the recheck", "stale", False)]

    warehouse = Meanwhile(system, "digest_new", lambda: audit_finds("during the verification"))
    assert verify_team(ledger, warehouse, TEAM, NO_WAIT) == {}
    assert [found[1] for found in findings(system) if not found[3]] == ["during the verification"]


def test_teams_verified_long_ago_are_rechecked_together_with_new_ones(system: System, ledger: Ledger) -> None:
    relink(system)
    insert_truth(system, ALICE, 0, "id", OTHER + 1)
    assert plan(system, ledger) == [OTHER + 1]
    copy_and_verify(system, ledger, OTHER + 1)
    assert switch(system, ledger).teams == set()
    assert system.disagreements() == {}


@pytest.mark.slow
def test_under_sustained_traffic_the_switch_comes(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every id moves all the time and ids come and go; rows take a while. One look, one wait, one switch."""
    enable(system, ledger)
    stop = threading.Event()
    changes = rounds = 0

    def work() -> None:
        nonlocal changes, rounds
        with system.ledger().connection as connection, system.client() as client:
            writer = Writer(connection, client, system.writer().switches)
            persons = [writer.create(team_id, f"hot {n}") for team_id in (TEAM, OTHER) for n in range(20)]
            while not stop.is_set():
                for n in range(20):
                    for half, team_id in enumerate((TEAM, OTHER)):
                        writer.identify(team_id, f"hot {n}", persons[half * 20 + (n + changes) % 20])
                        changes += 1
                    writer.create(TEAM, f"passing {changes}")
                    writer.delete(TEAM, f"passing {changes}")
                writer.flush()
                rounds += 1
            writer.flush()

    def what_was_committed_arrives() -> None:
        """However slow the traffic is."""
        after = rounds + 2
        until(lambda: rounds >= after or not thread.is_alive())

    skip_waits(monkeypatch, what_was_committed_arrives)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        until(lambda: changes >= 100 or not thread.is_alive())
        assert thread.is_alive()
        warehouse = switch(system, ledger, Settings(in_flight_seconds=5))
        assert thread.is_alive()
    finally:
        stop.set()
        thread.join(60)
    assert [name for name, _ in warehouse.heard].count("touched_ids") == 1
    assert system.disagreements() == {}
    assert findings(system) == []
