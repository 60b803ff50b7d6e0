"""Each way in which the new table can differ from Postgres is found, reported and repaired, and stays repaired."""

import hashlib
import re
from collections.abc import Sequence
from threading import Thread
from typing import Any
from uuid import UUID

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from conftest import ENGINE, LOCAL, LiveSystem, System
from pdi2.core.copy.copying import copy_team
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import BusyError
from pdi2.core.state import slices
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.state.slices import Teams
from pdi2.core.verify.digesting import digests, old_differs, suspects
from pdi2.core.verify.verifying import compare, verify_team
from stories import (
    ALICE,
    BOB,
    CAROL,
    MEGABYTE,
    NO_WAIT,
    PERSONS,
    TEAM,
    Meanwhile,
    add_teams,
    enable,
    event,
    insert_new,
    insert_old,
    insert_truth,
    many_ids,
    merge,
    migrate,
    plan,
    rows_of,
    seen,
    stop_merges,
    truth_and_old,
    until,
)

from demo.schema import Table

COPIED = -3_000_000_000
Row = tuple[str, int]
"""A person's letter, lower-case if the row is a tombstone, and a version."""


@pytest.fixture
def ledger(system: System) -> Ledger:
    """Merges happen only when a story asks for them."""
    stop_merges(system)
    return system.ledger()


def given(system: System, truth: Row | None, rows: list[Row], distinct_id: str = "id") -> None:
    """Inserts what Postgres says about an id, and its rows in the new table, each as a part."""
    if truth:
        insert_truth(system, PERSONS[truth[0]], truth[1], distinct_id)
    for letter, version in rows:
        insert_new(system, PERSONS[letter.upper()], version, distinct_id, is_deleted=letter.islower())


def verify(system: System, ledger: Ledger) -> dict[str, int]:
    plan(system, ledger)
    ledger.verify_all_again()
    return verify_team(ledger, system.warehouse(), TEAM, NO_WAIT)


def findings(system: System) -> list[tuple[Any, ...]]:
    return system.postgres.execute(
        "SELECT distinct_id, kind, repaired, clickhouse, postgres FROM pdi2_migration.finding ORDER BY 1, 2"
    ).fetchall()


def assert_agrees_whatever_merges(system: System) -> None:
    assert system.disagreements() == {}
    merge(system, Table.NEW)
    assert system.disagreements() == {}


def side(row: Row | None) -> dict[str, Any] | None:
    return row and {"person_id": str(PERSONS[row[0].upper()]), "version": row[1]}


# By name: the kind, what Postgres says, and the new table's rows, of which the first is what its reader sees.
DIFFERENCES: dict[str, tuple[str, Row | None, list[Row]]] = {
    "missing": ("missing", ("A", 0), []),
    "missing, of version null": ("missing", ("A", None), []),
    "missing, later life": ("missing", ("A", 3), []),
    "hidden by an older tombstone": ("missing", ("A", 2), [("a", 1)]),
    "hidden by a tombstone of its version": ("missing", ("A", 1), [("a", 1)]),
    "hidden by a tombstone of version 0": ("missing", ("A", 0), [("a", 0), ("A", COPIED)]),
    "hidden by an earlier correction": ("missing", ("A", 0), [("a", -1), ("A", COPIED)]),
    "stale": ("stale", ("B", 2), [("A", 1)]),
    "stale, under copies": ("stale", ("B", 2), [("A", 0), ("C", COPIED)]),
    "wrong person, copied": ("wrong_person", ("B", 0), [("A", COPIED)]),
    "wrong person, copied, later life": ("wrong_person", ("B", 7), [("A", COPIED)]),
    "wrong person at the version of Postgres": ("wrong_person", ("B", 1), [("A", 1)]),
    "wrong person beside the right one": ("wrong_person", ("B", 1), [("B", 1), ("A", 1)]),
    "resurrected, copied": ("resurrected", None, [("A", COPIED)]),
    "resurrected, dual-written": ("resurrected", None, [("A", 0)]),
    "resurrected, dual-written later": ("resurrected", None, [("A", 3), ("B", 2)]),
    "resurrected, above a tombstone": ("resurrected", None, [("A", 3), ("b", 2), ("B", 0)]),
    "back at 0, under the tombstone of its deletion": ("ahead", ("B", 0), [("a", 100)]),
    "back at null, under the row of its last life": ("ahead", ("B", None), [("A", 2), ("C", 1), ("B", 0)]),
    "back at 0, of the same person": ("ahead", ("A", 0), [("A", 5)]),
    "set back, same person": ("ahead", ("A", 2), [("A", 7), ("B", 3), ("A", 2)]),
    "set back, other person": ("ahead", ("A", 2), [("B", 3)]),
    "set back, under a tombstone": ("ahead", ("A", 2), [("a", 103), ("A", 2)]),
    "set back, over a copy": ("ahead", ("B", 0), [("A", 1), ("B", COPIED)]),
    "lost updates that end at the same person": ("stale", ("A", 3), [("A", 1)]),
}


@pytest.mark.parametrize(("kind", "truth", "rows"), DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_a_difference_is_found_reported_and_repaired(
    system: System, ledger: Ledger, kind: str, truth: Row | None, rows: list[Row]
) -> None:
    given(system, truth, rows)
    given(system, ("C", 4), [("C", 4)], "a good one")
    untouched = truth_and_old(system)

    assert verify(system, ledger) == {kind: 1}

    [(distinct_id, told, repaired, clickhouse, postgres)] = findings(system)
    assert (distinct_id, told, repaired) == ("id", kind, True)
    assert postgres == side(truth and (truth[0], truth[1] or 0))
    if rows:
        assert clickhouse.pop("is_deleted") is rows[0][0].islower()
        assert clickhouse["version"] == rows[0][1]
        if len(rows) == 1:
            assert clickhouse == side(rows[0])
    else:
        assert clickhouse is None
    assert system.teams()[TEAM].status == "verified"
    assert truth_and_old(system) == untouched
    assert_agrees_whatever_merges(system)


@pytest.mark.parametrize("order", ["A B", "B A", "b B", "B b", "a b B"])
@pytest.mark.parametrize(("version", "neighbours"), [(0, False), (1, False), (1, True)])
def test_rows_that_contradict_each_other_at_one_version_are_decided_by_postgres(
    system: System, ledger: Ledger, order: str, version: int, neighbours: bool
) -> None:
    """The reader sees one of them by chance: with other parts, or after a merge, it may see the other."""
    if neighbours:
        insert_new(system, CAROL, 1, "another", is_deleted=True)
    given(system, ("B", version), [(letter, version) for letter in order.split()])
    verify(system, ledger)
    assert_agrees_whatever_merges(system)


def test_tombstones_of_several_persons_are_one_tombstone(system: System, ledger: Ledger) -> None:
    """Ours, from an id that came back as somebody else's and was deleted again without a tombstone."""
    given(system, None, [("a", -1), ("b", -1)])
    add_teams(system, TEAM)
    assert verify(system, ledger) == {}
    assert seen(system) == {}


@pytest.mark.slow
def test_all_kinds_of_differences_are_repaired_at_once_and_later_updates_win(system: System, ledger: Ledger) -> None:
    for name, (_, truth, _) in DIFFERENCES.items():
        given(system, truth, [], name)
    for turn in range(3):
        turns = {name: rows[turn] for name, (_, _, rows) in DIFFERENCES.items() if turn < len(rows)}
        for letter, version in sorted(set(turns.values())):
            names = [name for name, row in turns.items() if row == (letter, version)]
            insert_new(system, PERSONS[letter.upper()], version, *names, is_deleted=letter.islower())
    kinds = [kind for kind, _, _ in DIFFERENCES.values()]

    assert verify(system, ledger) == {kind: kinds.count(kind) for kind in kinds}
    assert {row[0]: row[1] for row in findings(system)} == {name: kind for name, (kind, _, _) in DIFFERENCES.items()}
    assert ledger.findings_by_kind()["missing"] == {"repaired": kinds.count("missing"), "remaining": 0}
    assert verify(system, ledger) == {}, "what is repaired is no finding again"
    assert_agrees_whatever_merges(system)
    merge(system)
    assert verify(system, ledger) == {}
    assert sorted(row[1] for row in findings(system)) == sorted(kinds)

    later = {name: (truth[1] or 0) + 1 for name, (_, truth, _) in DIFFERENCES.items() if truth}
    for version in set(later.values()):
        insert_new(system, UUID(int=99), version, *(name for name in later if later[name] == version))
    assert seen(system) == dict.fromkeys(later, UUID(int=99))
    merge(system, Table.NEW)
    assert seen(system) == dict.fromkeys(later, UUID(int=99))


def test_more_differences_than_one_statement_takes_are_repaired(system: System, ledger: Ledger) -> None:
    add_teams(system, TEAM)
    system.postgres.execute(
        "INSERT INTO posthog_person (uuid, team_id) "
        "SELECT lpad(to_hex(n), 32, '0')::uuid, %s FROM generate_series(1, 1200) AS n",
        [TEAM],
    )
    system.postgres.execute(
        "INSERT INTO posthog_persondistinctid (distinct_id, person_id, team_id, version) "
        "SELECT 'id ' || id, id, team_id, 0 FROM posthog_person"
    )
    assert verify(system, ledger) == {"missing": 1200}
    assert len(findings(system)) == 1200
    assert_agrees_whatever_merges(system)


def test_a_merge_between_copy_and_verify_changes_nothing(system: System, ledger: Ledger) -> None:
    """A link that came twice and its unlink: a merge leaves one link, so what is copied depends on the merge."""
    for number, turn in enumerate(["+A1", "+A1", "-A2"]):
        insert_old(system, [event(turn, "gone"), event(f"+B{number + 1}", "kept")])
    insert_truth(system, BOB, 0, "kept")
    plan(system, ledger)
    copy_team(ledger, system.warehouse(), TEAM)
    merge(system)
    verify_team(ledger, system.warehouse(), TEAM, NO_WAIT)

    assert seen(system) == {"kept": BOB}
    assert_agrees_whatever_merges(system)


def test_evidence_that_a_merge_threw_away_is_made_good_by_postgres(system: System, ledger: Ledger) -> None:
    for turn in ["+A1", "+A1", "-A2"]:
        insert_old(system, [event(turn)])
    insert_truth(system, BOB, 0, "other")
    merge(system)
    plan(system, ledger)
    copy_team(ledger, system.warehouse(), TEAM)
    assert seen(system) == {"id": ALICE}

    assert verify_team(ledger, system.warehouse(), TEAM, NO_WAIT) == {"resurrected": 1, "missing": 1}
    assert_agrees_whatever_merges(system)


def test_a_difference_in_flight_is_no_finding(system: System, ledger: Ledger) -> None:
    add_teams(system, TEAM)
    enable(system, ledger)
    writer = system.writer()
    person = writer.create(TEAM, "in flight")
    plan(system, ledger)
    warehouse = Meanwhile(system, "new_of_ids", writer.flush)

    assert verify_team(ledger, warehouse, TEAM, Settings(settle_seconds=1)) == {}
    assert warehouse.happened
    assert findings(system) == []
    assert seen(system) == {"in flight": person}
    assert len(rows_of(system, Table.NEW)) == 1, "nothing was repaired"


@pytest.mark.parametrize(("truth", "rows"), [(("A", 1), [("B", 3)]), (("A", 0), [("a", 100)]), (None, [("A", 3)])])
def test_a_merge_during_the_repair_swallows_nothing_for_good(
    system: System, ledger: Ledger, truth: Row | None, rows: list[Row]
) -> None:
    """Until the row with the higher version is gone, a merge keeps only that row."""

    class Merging(Warehouse):
        def insert(self, table: str, columns: list[str], rows: Sequence[Sequence[Any]]) -> None:
            super().insert(table, columns, rows)
            merge(system, Table.NEW)

    given(system, truth, rows)
    plan(system, ledger)
    warehouse = system.warehouse(kind=Merging)
    verify_team(ledger, warehouse, TEAM, NO_WAIT)
    assert_agrees_whatever_merges(system)


def test_an_update_during_the_repair_wins(system: System, ledger: Ledger) -> None:
    """The application changes the id after the second look, and its row arrives after the repair."""
    given(system, ("A", 1), [("B", COPIED)])
    enable(system, ledger)
    writer = system.writer()
    carol = writer.create(TEAM, "carol's")
    writer.flush()
    plan(system, ledger)
    warehouse = Meanwhile(system, "new_of_ids", lambda: writer.identify(TEAM, "id", carol))
    verify_team(ledger, warehouse, TEAM, NO_WAIT)
    writer.flush()

    assert warehouse.happened
    assert seen(system)["id"] == carol
    assert_agrees_whatever_merges(system)


def test_a_row_that_arrives_during_the_repair_is_not_taken_for_one_that_stands_above(
    system: System, ledger: Ledger
) -> None:
    """The application writes again after the second look, and its row is there when the rows to delete are listed."""
    given(system, ("A", 1), [("B", 9)])
    enable(system, ledger)
    writer = system.writer()
    carol = writer.create(TEAM, "carol's")
    writer.flush()
    plan(system, ledger)

    class Writing(Warehouse):
        waits = True

        def rows(self, name: str, *given: Any) -> list[tuple[Any, ...]]:
            if name == "rows_of_ids" and self.waits:
                self.waits = False
                writer.identify(TEAM, "id", carol)
                writer.flush()
            return super().rows(name, *given)

    warehouse = system.warehouse(kind=Writing)
    assert verify_team(ledger, warehouse, TEAM, NO_WAIT) == {"ahead": 1}
    assert seen(system)["id"] == carol
    assert_agrees_whatever_merges(system)


@pytest.mark.parametrize(
    ("raw", "told"),
    [(b"\0", "\\x00"), (b"a\0b", "\\x610062"), (b"\xff\xfe", "\\xfffe"), (b"\xc3", "\\xc3")],
    ids=["NUL", "NUL inside", "no UTF-8", "half a letter"],
)
def test_an_id_that_postgres_cannot_hold_is_deleted(system: System, ledger: Ledger, raw: bytes, told: str) -> None:
    insert_new(system, ALICE, COPIED, raw)
    given(system, ("A", 0), [("A", COPIED)], "a good one")
    assert verify(system, ledger) == {"resurrected": 1}
    assert [row[:3] for row in findings(system)] == [(told, "resurrected", True)]
    assert seen(system) == {"a good one": ALICE}
    assert_agrees_whatever_merges(system)


@pytest.mark.parametrize("id_", ["", "o'brien", "back\\slash", "naïve 人 🦔", "長" * 399, "a\\x00", "%s", "{a:Int8}"])
def test_an_odd_id_is_repaired_under_its_own_name(system: System, ledger: Ledger, id_: str) -> None:
    given(system, ("B", 1), [("A", 1)], id_)
    given(system, ("B", 1), [("B", 1)], f"{id_}x")
    assert verify(system, ledger) == {"wrong_person": 1}
    assert [row[0] for row in findings(system)] == [id_]
    assert_agrees_whatever_merges(system)


def test_no_two_ids_share_a_finding(system: System, ledger: Ledger) -> None:
    """Bytes are shown as Postgres writes them, and so is text that looks like that."""
    for id_ in [b"\0", b"\\x00", b"\\x5c783030"]:
        insert_new(system, ALICE, COPIED, id_)
    assert verify(system, ledger) == {"resurrected": 3}
    told = [row[0] for row in findings(system)]
    assert sorted(told) == sorted(["\\x00", "\\x5c783030", "\\x5c783563373833303330"])
    raw = system.postgres.execute("SELECT distinct_id::bytea FROM pdi2_migration.finding").fetchall()
    assert {id_ for (id_,) in raw} == {b"\0", b"\\x00", b"\\x5c783030"}


REMOVED = "and what stood above or against it removed"

# By name: the old table's events, Postgres's row and the new table's, then what the old table's reader says, what is
# done, and the row written.
TOLD: dict[str, tuple[list[str], Row | None, list[Row], str | None, str, Row]] = {
    "inserted": (["+A1"], ("B", 2), [("A", COPIED)], "A", "inserted", ("B", 2)),
    "inserted, and the old table knows nothing": ([], ("B", 2), [], None, "inserted", ("B", 2)),
    "inserted, and the old table is right": (["+A1", "-A2", "+B3"], ("B", 1), [("A", 0)], "B", "inserted", ("B", 1)),
    "rivals": (["+A1"], ("B", 2), [("A", 2)], "A", f"inserted, {REMOVED}", ("B", 2)),
    "above": (["+B1"], ("B", 0), [("a", 100)], "B", f"inserted, {REMOVED}", ("B", 0)),
    "tombstoned": (["+A1"], None, [("A", COPIED)], "A", "tombstoned", ("a", -1)),
    "tombstoned, dual-written": (["+A1", "-A2"], None, [("A", 4)], None, f"tombstoned, {REMOVED}", ("a", -1)),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_finding_has_what_each_side_said_and_what_was_done(system: System, ledger: Ledger, name: str) -> None:
    events, truth, rows, old, action, written = TOLD[name]
    insert_old(system, [event(turn) for turn in events] or [event("+C1", "another")])
    given(system, truth, rows)
    given(system, ("C", 0), [("C", 0)], "another")
    verify(system, ledger)

    query = "SELECT old, postgres, action, written, now() - found_at < interval '1 minute' FROM pdi2_migration.finding"
    [(told_old, told_truth, done, row, recently)] = system.postgres.execute(query).fetchall()
    assert told_old == (old and {"person_id": str(PERSONS[old])})
    assert told_truth == side(truth)
    assert (done, recently) == (action, True)
    assert row == {**(side(written) or {}), "is_deleted": written[0].islower()}
    assert UUID(row["person_id"]) in {found[2] for found in rows_of(system, Table.NEW) if found[4] == written[1]}


@pytest.mark.slow
@pytest.mark.skipif(LOCAL, reason="clickhouse-local of then has no system.mutations")
def test_thousands_of_contradictions_take_a_few_deletes(system: System, ledger: Ledger) -> None:
    ids = [f"id {number}" for number in range(9_000)]
    add_teams(system, TEAM)
    system.postgres.execute("INSERT INTO posthog_person (uuid, team_id) VALUES (%s, %s)", [BOB, TEAM])
    system.postgres.execute(
        "INSERT INTO posthog_persondistinctid (distinct_id, person_id, team_id, version) "
        "SELECT unnest(%s::text[]), id, team_id, 1 FROM posthog_person",
        [ids],
    )
    insert_new(system, ALICE, 1, *ids)
    insert_new(system, BOB, 1, *ids)
    assert verify(system, ledger) == {"wrong_person": 9_000}
    assert_agrees_whatever_merges(system)
    count = "SELECT count() FROM system.mutations WHERE database = currentDatabase()"
    assert system.clickhouse.query(count).result_rows == [(2,)]


@pytest.mark.skipif(bool(ENGINE), reason="an engine that starts anew for every statement forgets STOP MERGES")
def test_a_delete_that_cannot_be_carried_out_is_not_waited_for_for_ever(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(system, ("B", 1), [("B", 1), ("A", 1)])
    given(system, ("B", 1), [("A", 0)], "another")
    monkeypatch.setattr("pdi2.core.verify.settling.REMOVAL_SECONDS", 0.1)
    system.clickhouse.command(f"SYSTEM STOP MERGES {Table.NEW}")
    try:
        told = r'Team 7: 1 id, such as "id".*Reads stay.*system.mutations.*SYSTEM START MERGES'
        with pytest.raises(BusyError, match=told):
            verify(system, ledger)
        assert system.teams()[TEAM].status != "verified"
        assert [row[:3] for row in findings(system)] == [("another", "stale", True), ("id", "wrong_person", False)]
    finally:
        system.clickhouse.command(f"SYSTEM START MERGES {Table.NEW}")
    monkeypatch.setattr("pdi2.core.verify.settling.REMOVAL_SECONDS", 300)
    verify(system, ledger)
    assert [row[2] for row in findings(system)] == [True, True], "nothing that was found is still open"
    assert_agrees_whatever_merges(system)


def test_where_the_old_reader_differs_is_counted_and_not_repaired(system: System, ledger: Ledger) -> None:
    for turn in ["+A1", "-A2", "+A3"]:
        insert_old(system, [event(turn, "relinked"), event(turn.replace("A", "B"), "relinked too")])
    insert_old(system, [event("+C1", "right"), event("+C1", "deleted")])
    for id_, person in [("relinked", ALICE), ("relinked too", BOB), ("right", CAROL)]:
        insert_truth(system, person, 0, id_)
    plan(system, ledger)
    copy_team(ledger, system.warehouse(), TEAM)
    untouched = truth_and_old(system)
    assert verify_team(ledger, system.warehouse(), TEAM, NO_WAIT) == {"resurrected": 1}

    assert system.teams()[TEAM].old_differs == 3
    assert truth_and_old(system) == untouched
    assert_agrees_whatever_merges(system)


def test_a_team_that_only_postgres_knows_is_filled_from_there(system: System, ledger: Ledger) -> None:
    insert_truth(system, ALICE, None)
    insert_truth(system, BOB, 3, "other")
    assert plan(system, ledger) == [TEAM]
    copy_team(ledger, system.warehouse(), TEAM)
    assert verify_team(ledger, system.warehouse(), TEAM, NO_WAIT) == {"missing": 2}
    assert_agrees_whatever_merges(system)


def test_a_team_that_only_the_new_table_knows_is_emptied(system: System, ledger: Ledger) -> None:
    given(system, None, [("A", COPIED)])
    given(system, None, [("b", 5)], "a tombstone")
    assert verify(system, ledger) == {"resurrected": 1}
    assert seen(system) == {}
    assert_agrees_whatever_merges(system)


def test_a_team_that_postgres_no_longer_knows_is_not_copied_and_shows_nothing(
    system: System, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """Its project was deleted years ago: no row in posthog_team, none in the mapping, all rows in ClickHouse."""
    caplog.set_level("INFO")
    insert_old(system, [event("+A1"), event("+B2", "other")])
    given(system, None, [("A", 4), ("B", 0)])
    system.postgres.execute("DELETE FROM posthog_team")
    assert plan(system, ledger) == [TEAM]
    assert "Not copied, because Postgres no longer knows them: 1 team (7)." in caplog.text

    copy_team(ledger, system.warehouse(), TEAM)
    assert seen(system) == {"id": ALICE}, "nothing was copied"
    assert verify_team(ledger, system.warehouse(), TEAM, NO_WAIT) == {"resurrected": 1}
    assert seen(system) == {}
    assert {row[4] for row in rows_of(system, Table.NEW) if row[4] >= 0} == set()
    assert_agrees_whatever_merges(system)


def test_an_empty_team_is_verified(system: System, ledger: Ledger) -> None:
    ledger.create()
    ledger.plan({TEAM: 0})
    assert verify_team(ledger, system.warehouse(), TEAM, NO_WAIT) == {}
    assert system.teams()[TEAM].status == "verified"


def test_other_teams_are_not_touched(system: System, ledger: Ledger) -> None:
    insert_truth(system, ALICE, 0, "id", team_id=TEAM + 1)
    given(system, ("B", 0), [("B", COPIED)])
    assert verify(system, ledger) == {}
    assert {row[0] for row in rows_of(system, Table.NEW)} == {TEAM}
    assert system.disagreements() == {TEAM + 1: {"id"}}


def test_the_digests_of_a_verified_team_are_of_what_was_repaired(system: System, ledger: Ledger) -> None:
    given(system, ("A", 1), [("B", 0)])
    given(system, ("C", 4), [("C", 4)], "a good one")
    digests = f"SELECT digest, truth_digest FROM pdi2_migration.team WHERE team_id = {TEAM}"

    verify(system, ledger)

    [(of_table, of_postgres)] = system.postgres.execute(digests.encode()).fetchall()
    assert of_table == of_postgres
    assert of_table.startswith("2:")
    given(system, ("A", 1), [("A", 1)], "one more")
    verify(system, ledger)
    assert system.postgres.execute(digests.encode()).fetchall() != [(of_table, of_postgres)]


@pytest.mark.slow
@pytest.mark.parametrize("bytes_a_row", [slices.BYTES_A_ROW, 50])
def test_a_comparison_needs_little_memory_whatever_the_parts(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, bytes_a_row: int
) -> None:
    """A plan that is far too optimistic costs no more than halving the ranges."""
    monkeypatch.setattr(slices, "BYTES_A_ROW", bytes_a_row)
    parts, rows = 30, 10_000
    for part in range(parts):
        ids = f"hex(MD5(toString(number * {parts} + {part})))"
        many_ids(system, rows, id_=ids)
        system.clickhouse.command(
            "INSERT INTO person_distinct_id2 (team_id, distinct_id, person_id, version, is_deleted) "
            f"SELECT {TEAM}, {ids}, toUUID('{ALICE}'), {part}, 0 FROM numbers({rows})"
        )
    insert_new(system, BOB, 0, hashlib.md5(b"0").hexdigest().upper())
    small = system.warehouse(max_memory_usage=50 << 20)

    team = Teams((TEAM,), parts * rows)
    found = digests(system.postgres, small, team)
    assert sum(bucket.ids for bucket in found.seen.values()) == parts * rows
    assert sum(bucket.contradictory for bucket in found.seen.values()) == 1
    assert sum(map(len, suspects(system.postgres, small, team, found))) == parts * rows
    assert old_differs(small, team)[TEAM] == pytest.approx(parts * rows, rel=0.03)  # an estimate


def test_a_gap_in_the_new_table_is_listed_in_portions(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges are cut by the new table's rows, and all that a gap lacks falls into one of them."""
    monkeypatch.setattr("pdi2.core.verify.digesting.LISTED_AT_ONCE", 50)
    insert_truth(system, ALICE, 0, "000")
    system.postgres.execute(
        "INSERT INTO posthog_persondistinctid (team_id, distinct_id, person_id, version) "
        "SELECT team_id, lpad(n::text, 3, '0'), person_id, 0 "
        "FROM posthog_persondistinctid, generate_series(1, 499) AS n"
    )
    insert_new(system, ALICE, 0, *(f"{number:03}" for number in range(0, 500, 100)), "049x", "260x", "999")
    found = list(suspects(system.postgres, system.warehouse(), Teams((TEAM,), 8)))
    assert max(map(len, found)) <= 60
    wrong = [f"{number:03}" for number in range(500) if number % 100] + ["049x", "260x", "999"]
    assert sorted(key for keys in found for key in keys) == sorted((TEAM, one.encode()) for one in wrong)
    assert sum(map(len, found)) == len(wrong), "none is listed twice"


def test_the_old_readers_errors_are_not_counted_where_memory_does_not_suffice(
    system: System, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    class Short(Warehouse):
        """A deleted project, say, with far more rows in the old table than in the new one."""

        def rows(self, name: str, *rest: Any) -> Any:
            short = {"max_memory_usage": 100_000, "max_untracked_memory": 0} if name == "old_differs" else {}
            return super().rows(name, rest[0] if rest else None, short)

    insert_old(system, [event("+A1")])
    insert_truth(system, ALICE)
    insert_new(system, ALICE, 0)
    warehouse = Short(system.client, "a test", 200 * MEGABYTE)
    system.opened.append(warehouse)
    compared = compare(ledger, warehouse, Teams((TEAM,), 1), NO_WAIT)
    assert (compared.found, compared.old_differs) == ({}, None)
    assert "was not counted: ClickHouse error 241" in caplog.text


def test_a_comparison_that_takes_long_says_how_far_it_is(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("pdi2.core.verify.digesting.TELL_EVERY_SECONDS", 0.01)
    monkeypatch.setattr("pdi2.core.verify.digesting.aggregated_at_once", lambda _: 400)
    insert_truth(system, ALICE, 0, "0000")
    system.clickhouse.command(
        "INSERT INTO person_distinct_id2 (team_id, distinct_id, person_id, version, is_deleted) "
        f"SELECT {TEAM}, leftPad(toString(number), 4, '0'), toUUID('{ALICE}'), 0, 0 FROM numbers(4000)"
    )
    other = system.ledger("somebody who locks").connection
    other.execute("BEGIN")
    other.execute("LOCK TABLE posthog_person IN ACCESS EXCLUSIVE MODE")
    told = "Postgres still computes the digest of team 7"

    def unlock() -> None:
        until(lambda: told in caplog.text)
        other.execute("ROLLBACK")

    unlocking = Thread(target=unlock)
    unlocking.start()

    digests(ledger.connection, system.warehouse(), Teams((TEAM,), 4_000))

    unlocking.join()
    assert re.search(r"Compared range \d of \d of team 7", caplog.text)
    assert told in caplog.text


@pytest.mark.slow
def test_an_id_of_more_persons_than_memory_holds_is_compared_by_way_of_the_disk(system: System) -> None:
    links = 2_000_000
    many_ids(system, links, id_="'crowded'", person="reinterpretAsUUID(number + 1)")
    small = system.warehouse(max_memory_usage=125 << 20)
    with pytest.raises(DatabaseError, match="MEMORY_LIMIT_EXCEEDED"):
        small.rows("old_differs", Teams((TEAM,), links).parameters | {"one_of": 1})
    assert old_differs(small, Teams((TEAM,), 1)) == {TEAM: 1}


def test_a_row_with_a_very_long_id_is_removed(live: LiveSystem) -> None:
    """An address of the request holds 64 KB on this server, and 1 MB on ClickHouse's own."""
    insert_old(live, [event("+A1")])
    insert_truth(live, ALICE)
    insert_new(live, BOB, 5, b"x" * 100_000)

    migrate(live, live.ledger())

    assert live.disagreements() == {}
