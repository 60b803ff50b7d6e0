"""Copying a team on the real engines: the live-pair rule, slices, checkpoints, and what the engines refuse."""

import hashlib
from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import Any
from uuid import UUID

import psycopg
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from conftest import ENGINE, System
from pdi2.core.copy.copying import CopyError, copy_team
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import BusyError, MigrationError, Reaction, reaction
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import SCHEMA, Settings
from pdi2.core.state.slices import SMALL_ROWS
from stories import (
    ALICE,
    BOB,
    MEGABYTE,
    PERSONS,
    TEAM,
    Meanwhile,
    a_range_a_slice,
    dump,
    event,
    insert_new,
    insert_old,
    many_ids,
    merge,
    plan,
    rows_of,
    seen,
    stop_merges,
    when_recorded,
)

from demo.schema import Table

DATETIME_MAX = 2**32 - 1

NEEDS_MORE = pytest.mark.skipif(bool(ENGINE), reason="older engines copy these ids in less memory")

# The person that each history leaves live, however far merges got. Its rows are inserted one by one, in order.
LIVE = {
    "+A1": "A",
    "-A1": None,
    "+A1 -A2": None,
    "+A1 -A2 +A3": "A",
    "+A1 -A2 +A3 -A4": None,
    "+A1 -A2 +A3 -A4 +A5": "A",
    "+A1 +A1": "A",
    "+A1 -A2 -A2": None,
    "-A1 +A2": "A",
    "-A2 +A1": None,
    "-A3 +A2 +A1 -A2.9": None,
    "+A1.1 -A1.1": None,
    "-A1.1 +A1.1": None,
    "+A1.1 -A1.2": None,
    "-A1.1 +A1.2": "A",
    "+A1 +B2": "B",
    "+A2 +B1": "A",
    "+A1.1 +B1.2": "B",
    "+A1.2 +B1.1": "A",
    "+A1 -A2 +B2": "B",
    "+B2 -A2 +A1": "B",
    "+A1 -A2 +B2 -B3 +A3": "A",
    "+A1 -A2 +B2 -B3 +C3": "C",
    "+A1 +B2 -B3": "A",
    "+A1 +B2 +C3 -C4": "B",
    "+A1 +B1 -A2 -B2": None,
}


@pytest.fixture
def ledger(system: System, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Merges happen only when a story asks for them, and each range is a slice."""
    stop_merges(system)
    a_range_a_slice(monkeypatch)
    return system.ledger()


def deliver_by_rounds(system: System, histories: dict[str, str]) -> None:
    """Inserts histories by id. Each round inserts the next event of each id, so that no insert collapses a pair."""
    events = {id_: history.split() for id_, history in histories.items()}
    for turn in range(max(map(len, events.values()))):
        insert_old(system, [event(parts[turn], id_) for id_, parts in events.items() if turn < len(parts)])


def in_small_slices(ledger: Ledger) -> None:
    """Slices are small, as after many halvings."""
    ledger.remember_range_rows(TEAM, 1000)


def slices(system: System) -> list[tuple[Any, ...]]:
    return system.postgres.execute(
        "SELECT lower, upper, rows_copied, finished_at FROM pdi2_migration.slice ORDER BY lower"
    ).fetchall()


def assert_slices_tile_the_keys(system: System) -> None:
    found = slices(system)
    lowers, uppers = [row[0] for row in found], [row[1] for row in found]
    assert lowers[0] == b""
    assert uppers[-1] is None
    assert uppers[:-1] == lowers[1:]


def forget_the_copy(system: System) -> None:
    system.postgres.execute("DELETE FROM pdi2_migration.slice")
    system.postgres.execute("UPDATE pdi2_migration.team SET status = 'planned'")


def copy_until_postgres_is_lost(system: System, ledger: Ledger, at_slice: int) -> None:
    """The checkpoint of that slice never arrives, because its session ends while it is being written."""
    there = "(SELECT count(*) FROM pdi2_migration.slice)"
    ends = f"IF {there} = {at_slice} THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF"
    when_recorded(system, "slice", "true", ends)
    with pytest.raises(psycopg.OperationalError) as lost:
        copy_team(ledger, system.warehouse(), TEAM)
    assert reaction(lost.value) is Reaction.RETRY
    system.postgres.execute("DROP FUNCTION happen CASCADE")


@pytest.mark.parametrize("merged", ["never", "before", "between slices", "after"])
@pytest.mark.parametrize("company", [0, 400], ids=["alone", "among many simple ids"])
def test_the_latest_event_of_a_pair_decides_whenever_merges_run(
    system: System, ledger: Ledger, merged: str, company: int
) -> None:
    places = "0123456789"
    deliver_by_rounds(system, {f"{place} {history}": history for place in places for history in LIVE})
    for place in places if company else "":
        many_ids(system, company, id_=f"'{place} simple ' || toString(number)")
    if merged == "before":
        merge(system, Table.OLD)
    plan(system, ledger)
    in_small_slices(ledger)
    if merged == "between slices":
        copy_until_postgres_is_lost(system, ledger, at_slice=2 if company else 1)
        merge(system)
        ledger = system.ledger()
    copy_team(ledger, system.warehouse(), TEAM)
    if merged == "after":
        merge(system)

    read = seen(system)
    expected = {f"{place} {history}": PERSONS[person] for place in places for history, person in LIVE.items() if person}
    assert {id_: person for id_, person in read.items() if "simple" not in id_} == expected
    assert len(read) == len(expected) + company * len(places)


def live_by_the_rule(history: str) -> set[UUID]:
    """Who may win: the live persons of the latest event, or nobody."""
    latest: dict[str, tuple[int, bool]] = {}
    for sign, person, second in history.split():
        latest[person] = max(latest.get(person, (0, False)), (int(second), sign == "-"))
    live = {person: second for person, (second, unlinked) in latest.items() if not unlinked}
    return {PERSONS[person] for person, second in live.items() if second == max(live.values())}


def test_the_rule_holds_for_every_history_of_four_events(system: System, ledger: Ledger) -> None:
    events = [f"{sign}{person}{second}" for sign in "+-" for person in "ABC" for second in "12"]
    histories = [" ".join(some) for count in (1, 2, 3, 4) for some in combinations_with_replacement(events, count)]
    deliver_by_rounds(system, {history: history for history in histories})
    plan(system, ledger)
    copy_team(ledger, system.warehouse(), TEAM)

    read = seen(system)
    may_win = {history: live_by_the_rule(history) for history in histories}
    assert read.keys() == {history for history, persons in may_win.items() if persons}
    assert {history: person for history, person in read.items() if person not in may_win[history]} == {}
    copies = rows_of(system, Table.NEW)
    assert len(copies) == len(read)


def test_the_old_reader_loses_ids_that_the_copy_keeps(system: System, ledger: Ledger) -> None:
    deliver_by_rounds(system, {"id": "+A1 -A2 +A3"})
    plan(system, ledger)
    copy_team(ledger, system.warehouse(), TEAM)

    assert seen(system, Table.OLD) == {}
    assert seen(system) == {"id": ALICE}


@pytest.mark.parametrize("second", [0, 1, 1_640_000_000, DATETIME_MAX])
@pytest.mark.parametrize("order", ["the copy first", "the application first"])
def test_any_row_of_the_application_beats_a_copied_row(system: System, ledger: Ledger, second: int, order: str) -> None:
    ids = ["linked", "deleted"]
    insert_old(system, [event(f"+A{second}", id_) for id_ in ids])
    plan(system, ledger)

    def application_writes() -> None:
        insert_new(system, BOB, 0, "linked")
        insert_new(system, ALICE, 0, "deleted", is_deleted=True)

    if order == "the application first":
        application_writes()
    copy_team(ledger, system.warehouse(), TEAM)
    copied = [row[4] for row in rows_of(system, Table.NEW) if row[2] == ALICE and not row[3]]
    assert len(copied) == 2
    assert max(copied) <= -2
    if order == "the copy first":
        assert seen(system) == dict.fromkeys(ids, ALICE)
        application_writes()

    assert seen(system) == {"linked": BOB}
    merge(system, Table.NEW)
    assert seen(system) == {"linked": BOB}


def test_of_two_copies_of_an_id_the_later_event_wins(system: System, ledger: Ledger) -> None:
    insert_old(system, [event("+A5")])
    plan(system, ledger)
    copy_team(ledger, system.warehouse(), TEAM)
    insert_old(system, [event("-A6"), event("+B6.7")])
    forget_the_copy(system)
    copy_team(ledger, system.warehouse(), TEAM)

    assert seen(system) == {"id": BOB}
    merge(system, Table.NEW)
    assert seen(system) == {"id": BOB}


ODD_IDS = [
    b"",
    b" ",
    b"'",
    b'"',
    b"o'brien",
    b"back\\slash\\",
    b"\\N",
    b"{lower:String}",
    b"%(team_id)s",
    b"%s%%",
    b"line\nbreak\r\t",
    b"NULL",
    b"\0",
    b"\0\0",
    b"a\0b",
    b"a",
    b"\xff",
    b"\xff\xfe\0",
    b"\xc3",
    "naïve 人 🦔".encode(),
    "長".encode() * 400,
    hashlib.shake_128(b"longer than a key of Postgres, which cannot compress it").digest(3_000),
]


def test_odd_ids_arrive_as_they_were(system: System, ledger: Ledger) -> None:
    insert_old(system, [event(f"+A{number}", id_) for number, id_ in enumerate([*ODD_IDS, b"x" * 100_000], 1)])
    plan(system, ledger)
    copy_team(ledger, system.warehouse(), TEAM)

    assert sorted(row[1] for row in rows_of(system, Table.NEW)) == sorted([*ODD_IDS, b"x" * 100_000])


@pytest.mark.slow
@pytest.mark.parametrize("simple", [True, False], ids=["simple ids", "ids of many rows"])
def test_odd_ids_may_be_bounds_of_slices(system: System, ledger: Ledger, simple: bool) -> None:
    """Each odd id, or the ids that begin with it, have enough rows to fill a slice."""
    for id_ in ODD_IDS:
        many_ids(system, 1100, id_=f"unhex('{id_.hex()}')" + " || hex(number)" * simple)
    plan(system, ledger)
    in_small_slices(ledger)
    copy_team(ledger, system.warehouse(), TEAM)

    assert len(slices(system)) > 2
    assert_slices_tile_the_keys(system)
    if not simple:
        assert {row[0] for row in slices(system)} <= set(ODD_IDS)
    counts = "SELECT count(), uniqExact(distinct_id), uniqExact(person_id) FROM person_distinct_id2"
    ids = len(ODD_IDS) * 1100 if simple else len(ODD_IDS)
    assert system.clickhouse.query(counts).result_rows == [(ids, ids, 1100 if simple else 1)]


@pytest.mark.parametrize("rows", [1, 999, 1000, 1001, 2_100], ids=lambda rows: f"{rows} rows")
@pytest.mark.parametrize("parts", [1, 3], ids=["one part", "three parts"])
def test_slices_tile_the_keys_and_copy_each_id_once(system: System, ledger: Ledger, rows: int, parts: int) -> None:
    for part in range(parts):
        many_ids(system, rows, id_=f"'{part}' || toString(number)")
    many_ids(system, 100, team_id=TEAM - 1)
    many_ids(system, 100, team_id=TEAM + 1)
    plan(system, ledger)
    in_small_slices(ledger)
    copy_team(ledger, system.warehouse(), TEAM)

    assert_slices_tile_the_keys(system)
    ids = rows * parts
    assert (len(slices(system)) > 2) == (ids > 2_000)
    assert sum(row[2] for row in slices(system)) == ids
    counts = "SELECT team_id, count(), uniqExact(distinct_id) FROM person_distinct_id2 GROUP BY team_id"
    assert system.clickhouse.query(counts).result_rows == [(TEAM, ids, ids)]
    team = system.teams()[TEAM]
    assert (team.status, team.rows_copied, team.slices_done) == ("copied", ids, len(slices(system)))
    assert team.error is None


def test_an_id_with_more_rows_than_a_slice_stays_whole(system: System, ledger: Ledger) -> None:
    for distinct_id, rows in [("a", 1), ("crowded", 20_000), ("z", 1)]:
        many_ids(system, rows, id_=f"'{distinct_id}'")
    insert_old(system, [event("+B50000", "crowded")])
    plan(system, ledger)
    in_small_slices(ledger)
    copy_team(ledger, system.warehouse(), TEAM)

    assert_slices_tile_the_keys(system)
    assert seen(system) == {"a": UUID(int=0), "crowded": BOB, "z": UUID(int=0)}
    assert len(rows_of(system, Table.NEW)) == 3


@pytest.mark.slow
@pytest.mark.skipif(bool(ENGINE), reason="the memory of a million pairs was measured on this engine")
def test_an_id_of_a_million_rows_that_the_rule_decides_fits(system: System, ledger: Ledger) -> None:
    """Its latest link was undone and so were others, so that its latest events leave it undecided."""
    many_ids(system, 1_000_000, id_="'crowded'", person="reinterpretAsUUID(number + 1)", second="1000")
    system.clickhouse.command(
        "INSERT INTO person_distinct_id (team_id, distinct_id, person_id, _sign, _timestamp, _offset) "
        f"SELECT {TEAM}, 'crowded', reinterpretAsUUID(number + 1), -1, 5000, number FROM numbers(999990, 10)"
    )
    plan(system, ledger)
    copy_team(ledger, system.warehouse(), TEAM)

    last = "SELECT toString(reinterpretAsUUID(toUInt64(999990)))"
    expected = UUID(str(system.clickhouse.query(last).result_rows[0][0]))
    copied = system.clickhouse.query("SELECT person_id FROM person_distinct_id2").result_rows
    assert copied == [(expected,)]


def test_a_team_without_rows_is_copied_by_one_empty_slice(system: System, ledger: Ledger) -> None:
    ledger.create()
    ledger.plan({TEAM: 0})
    copy_team(ledger, system.warehouse(), TEAM)

    assert [row[:3] for row in slices(system)] == [(b"", None, 0)]
    assert system.teams()[TEAM].status == "copied"


def test_a_team_that_was_never_planned_is_refused(system: System, ledger: Ledger) -> None:
    many_ids(system, 10)
    ledger.create()
    with pytest.raises(MigrationError, match=f"Team {TEAM} is not in the ledger.*Clear plan_teams"):
        copy_team(ledger, system.warehouse(), TEAM)
    assert rows_of(system, Table.NEW) == []


def fat(size: int) -> str:
    return f"leftPad(toString(number), 8, '0') || repeat('x', {size})"


@pytest.mark.parametrize(
    ("ids", "size", "links", "budget"),
    [
        pytest.param(60_000, 1500, 2, 100 * MEGABYTE, id="long ids", marks=[pytest.mark.slow, NEEDS_MORE]),
        pytest.param(60_000, 400, 2, SCHEMA["max_memory_usage"]["minimum"], id="little memory", marks=pytest.mark.slow),
    ],
)
def test_a_slice_that_meets_the_memory_limit_is_split(
    system: System, ledger: Ledger, ids: int, size: int, links: int, budget: int
) -> None:
    """The ids are so long that a first range, which is sized by rows alone, does not fit."""
    for link in range(links):
        many_ids(system, ids, id_=fat(size), person=f"reinterpretAsUUID({link})", second=f"{link}")
    plan(system, ledger)
    copy_team(ledger, system.warehouse(max_memory_usage=budget), TEAM)

    team = system.teams()[TEAM]
    assert team.range_rows is not None
    assert team.range_rows < ids
    assert team.slices_done == len(slices(system))
    assert_slices_tile_the_keys(system)
    assert team.rows_copied == ids
    merge(system, Table.NEW)
    copied = "SELECT count(), uniqExact(distinct_id), min(version), max(version) FROM person_distinct_id2"
    version = links - 1 - 2**32 - 1
    assert system.clickhouse.query(copied).result_rows == [(ids, ids, version, version)]


def test_a_budget_too_small_for_the_smallest_slice_is_reported(system: System, ledger: Ledger) -> None:
    many_ids(system, 3000, id_=fat(4000))
    plan(system, ledger)
    with pytest.raises(CopyError, match="does not fit into max_memory_usage.*greater max_memory_usage") as refused:
        copy_team(ledger, system.warehouse(max_memory_usage=2 * MEGABYTE), TEAM)
    assert reaction(refused.value) is Reaction.FAIL
    assert slices(system) == []

    copy_team(ledger, system.warehouse(), TEAM)
    assert system.teams()[TEAM].rows_copied == 3000


@pytest.mark.slow
def test_a_slice_whose_checkpoint_was_lost_is_copied_again_and_no_other(system: System, ledger: Ledger) -> None:
    many_ids(system, 5_000)
    plan(system, ledger)
    in_small_slices(ledger)
    copy_until_postgres_is_lost(system, ledger, at_slice=3)
    finished = slices(system)
    assert len(finished) == 2
    copied = "SELECT count() FROM person_distinct_id2"
    [[inserted]] = system.clickhouse.query(copied).result_rows
    lost = inserted - sum(row[2] for row in finished)
    assert lost > 0, "the third slice was inserted, its checkpoint was not"

    copy_team(system.ledger(), system.warehouse(), TEAM)

    assert slices(system)[:2] == finished
    assert_slices_tile_the_keys(system)
    assert system.clickhouse.query(copied).result_rows == [(5_000 + lost,)], "one slice was copied twice, no other"
    assert system.teams()[TEAM].rows_copied == 5_000
    once = seen(system)
    assert len(once) == 5_000
    merge(system, Table.NEW)
    assert seen(system) == once
    assert system.clickhouse.query(copied).result_rows == [(5_000,)]


def test_a_copied_team_is_not_copied_again(system: System, ledger: Ledger) -> None:
    many_ids(system, 50)
    plan(system, ledger)
    copy_team(ledger, system.warehouse(), TEAM)
    before = dump(system)
    plan(system, ledger)
    copy_team(ledger, system.warehouse(), TEAM)

    after = dump(system)
    assert after[Table.NEW] == before[Table.NEW]
    assert after["pdi2_migration.slice"] == before["pdi2_migration.slice"]


def test_copying_twice_changes_nothing_a_reader_sees(system: System, ledger: Ledger) -> None:
    deliver_by_rounds(system, {history: history for history in LIVE})
    insert_new(system, BOB, 0, "+A1")
    insert_new(system, ALICE, 100, "+A1 +A1", is_deleted=True)
    plan(system, ledger)
    copy_team(ledger, system.warehouse(), TEAM)
    once = seen(system)
    merge(system, Table.OLD)
    forget_the_copy(system)
    copy_team(ledger, system.warehouse(), TEAM)

    assert seen(system) == once
    assert once["+A1"] == BOB
    assert "+A1 +A1" not in once
    merge(system, Table.NEW)
    assert seen(system) == once


def fails_with(error: type[Exception], work: Callable[[], object]) -> Exception:
    with pytest.raises(error) as failure:
        work()
    return failure.value


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_memory_usage": MEGABYTE}, Reaction.SPLIT),
        ({"max_memory_usage_for_user": MEGABYTE}, Reaction.RETRY),
        ({"max_execution_time": 0.001, "timeout_before_checking_execution_speed": 0}, Reaction.SPLIT),
        ({"max_rows_to_read": 10}, Reaction.FAIL),
    ],
    ids=["the query's memory limit", "the user's memory limit", "a timeout", "a limit against which no retry helps"],
)
def test_which_limit_of_clickhouse_splits_a_slice(system: System, settings: dict[str, Any], expected: Reaction) -> None:
    with system.client() as client:
        heavy = "SELECT groupArray(toString(number)) FROM numbers(10000000) FORMAT Null"
        error = fails_with(DatabaseError, lambda: client.command(heavy, settings=settings))
    assert reaction(error) is expected, str(error)


def test_a_missing_table_fails_at_once(system: System, ledger: Ledger) -> None:
    plan(system, ledger)
    ledger.plan({TEAM: 1})
    system.clickhouse.command("DROP TABLE person_distinct_id SYNC")
    error = fails_with(CopyError, lambda: copy_team(ledger, system.warehouse(), TEAM))
    assert reaction(error) is Reaction.FAIL


def test_a_lost_connection_to_postgres_is_worth_a_retry(system: System, ledger: Ledger) -> None:
    ledger.create()
    system.postgres.execute("SELECT pg_terminate_backend(%s, 5000)", [ledger.connection.info.backend_pid])
    error = fails_with(psycopg.OperationalError, ledger.teams)
    assert reaction(error) is Reaction.RETRY


def test_a_missing_column_in_postgres_fails_at_once(system: System, ledger: Ledger) -> None:
    ledger.create()
    system.postgres.execute("ALTER TABLE pdi2_migration.team DROP COLUMN slice_rows")
    assert reaction(fails_with(psycopg.Error, ledger.teams)) is Reaction.FAIL


@pytest.mark.slow
@pytest.mark.skipif(bool(ENGINE), reason="older engines count less, or more, of what a user holds")
def test_a_busy_user_interrupts_the_copy_which_goes_on_where_it_stopped(system: System, ledger: Ledger) -> None:
    many_ids(system, 5_000)
    plan(system, ledger)
    in_small_slices(ledger)
    copy_until_postgres_is_lost(system, ledger, at_slice=2)
    ledger = system.ledger()
    with system.client() as client:
        client.set_client_setting("max_memory_usage_for_user", 1000)
        busy = Warehouse(lambda: client, "busy", Settings().max_memory_usage)
        error = fails_with(BusyError, lambda: copy_team(ledger, busy, TEAM))
    assert reaction(error) is Reaction.RETRY, str(error)
    assert "100 MB instead of 200 MB" in str(error)
    finished = slices(system)
    assert len(finished) == 1

    copy_team(ledger, system.warehouse(), TEAM)
    assert slices(system)[:1] == finished
    assert len(seen(system)) == 5_000


def application_relinks(system: System) -> None:
    insert_old(system, [event("-A7"), event("+B7.8")])
    insert_new(system, BOB, 1)


def application_deletes(system: System) -> None:
    insert_old(system, [event("-A7")])
    insert_new(system, ALICE, 100, is_deleted=True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [(application_relinks, {"id": BOB}), (application_deletes, {})],
    ids=["relinked", "deleted"],
)
@pytest.mark.parametrize("before", ["+A1", "+A1 -A2 +A3"], ids=["a simple id", "a complex id"])
def test_a_live_update_in_the_middle_of_a_slice_wins(
    system: System, ledger: Ledger, before: str, change: Callable[[System], None], expected: dict[str, UUID]
) -> None:
    many_ids(system, 100)
    deliver_by_rounds(system, {"id": before})
    plan(system, ledger)
    warehouse = Meanwhile(system, "told_apart", lambda: change(system))
    copy_team(ledger, warehouse, TEAM)

    assert warehouse.happened
    assert {id_: person for id_, person in seen(system).items() if id_ == "id"} == expected
    merge(system)
    assert {id_: person for id_, person in seen(system).items() if id_ == "id"} == expected


@pytest.mark.parametrize(("others", "counted"), [(0, 0), (1, 0), (SMALL_ROWS + 1, SMALL_ROWS + 1)])
def test_a_merge_of_the_old_table_between_two_counts_is_no_failure(
    system: System, ledger: Ledger, others: int, counted: int
) -> None:
    """The rows of complex ids are counted before all rows. If a merge leaves fewer, fewer others are expected, and the
    slice is checked id by id. A staging table shows how many rows were copied."""
    if others:
        many_ids(system, others)
    deliver_by_rounds(system, {"gone": "-A1 -A1"})
    plan(system, ledger)
    warehouse = Meanwhile(system, "count_decided", lambda: merge(system, Table.OLD))
    copy_team(ledger, warehouse, TEAM)

    assert warehouse.happened
    assert len(seen(system)) == others
    assert counted <= sum(row[2] for row in slices(system)) <= others


def test_a_link_that_has_reached_the_old_table_alone_is_no_failure(system: System, ledger: Ledger) -> None:
    """The link came after the ids were told apart, and its row for the new table is still on the way."""
    many_ids(system, 100)
    plan(system, ledger)
    copy_team(ledger, system.warehouse(), TEAM)
    system.postgres.execute("DELETE FROM pdi2_migration.slice")  # as if killed before the checkpoint: copied again
    warehouse = Meanwhile(system, "copied", lambda: insert_old(system, [event("+A7", "late")]))
    copy_team(ledger, warehouse, TEAM)

    assert warehouse.happened
    assert len(seen(system)) == 101
    assert seen(system)["late"] == ALICE
