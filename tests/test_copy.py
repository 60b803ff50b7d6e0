"""Copying a team on the real engines: the live-pair rule, slices, checkpoints, and what the engines refuse."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from conftest import System
from pdi2.core.copying import CopyError, copy_team
from pdi2.core.failures import MigrationError, Reaction, reaction
from pdi2.core.ledger import Ledger
from stories import (
    ALICE,
    BOB,
    PERSONS,
    TEAM,
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
)

from demo.schema import Table

MEGABYTE = 1_000_000
DATETIME_MAX = 2**32 - 1

# What each history, inserted a row at a time in the order of the text, leaves live, however far merges got.
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
def ledger(system: System) -> Ledger:
    """Merges happen only where a story says so."""
    stop_merges(system)
    return system.ledger()


def live_as(expected: dict[str, str | None]) -> dict[str, Any]:
    return {history: PERSONS[person] for history, person in expected.items() if person}


def deliver_by_rounds(system: System, histories: list[str]) -> None:
    """Every history is an id of its own; a round inserts the next event of each, so no insert collapses a pair."""
    events = {history: history.split() for history in histories}
    for turn in range(max(map(len, events.values()))):
        insert_old(system, [event(parts[turn], history) for history, parts in events.items() if turn < len(parts)])


def in_slices_of(ledger: Ledger, rows: int, team_id: int = TEAM) -> None:
    ledger.remember_slice_rows(team_id, rows)


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


def forget_the_copy(system: System, team_id: int = TEAM) -> None:
    system.postgres.execute("DELETE FROM pdi2_migration.slice WHERE team_id = %s", [team_id])
    system.postgres.execute("UPDATE pdi2_migration.team SET status = 'planned' WHERE team_id = %s", [team_id])


def lose_postgres_at_slice(system: System, number: int) -> None:
    """The checkpoint of that slice never arrives: its session ends while it is written."""
    system.postgres.execute(
        f"""
        CREATE FUNCTION pdi2_migration.lose_connection() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF (SELECT count(*) FROM pdi2_migration.slice) = {number - 1} THEN
                PERFORM pg_terminate_backend(pg_backend_pid());
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER lose_connection BEFORE INSERT ON pdi2_migration.slice
        FOR EACH ROW EXECUTE FUNCTION pdi2_migration.lose_connection()
        """.encode()
    )


def keep_postgres(system: System) -> None:
    system.postgres.execute("DROP FUNCTION pdi2_migration.lose_connection CASCADE")


def copy_until_postgres_is_lost(system: System, ledger: Ledger, at_slice: int) -> None:
    lose_postgres_at_slice(system, at_slice)
    with pytest.raises(psycopg.OperationalError) as lost:
        copy_team(ledger, system.warehouse(), TEAM)
    assert reaction(lost.value) is Reaction.RETRY
    keep_postgres(system)


@pytest.mark.parametrize("merged", ["never", "before", "between slices", "after"])
def test_the_latest_event_of_a_pair_decides_whenever_merges_run(system: System, ledger: Ledger, merged: str) -> None:
    deliver_by_rounds(system, list(LIVE))
    if merged == "before":
        merge(system, Table.OLD)
    plan(system, ledger)
    in_slices_of(ledger, 9)
    if merged == "between slices":
        copy_until_postgres_is_lost(system, ledger, at_slice=3)
        merge(system)
        ledger = system.ledger()
    copy_team(ledger, system.warehouse(), TEAM)
    if merged == "after":
        merge(system)

    assert seen(system) == live_as(LIVE)


def test_nothing_is_copied_for_a_pair_that_is_not_live(system: System, ledger: Ledger) -> None:
    deliver_by_rounds(system, list(LIVE))
    plan(system, ledger)
    copy_team(ledger, system.warehouse(), TEAM)

    ids = [row[1].decode() for row in rows_of(system, Table.NEW)]
    assert sorted(ids) == sorted(live_as(LIVE))


def test_the_old_reader_loses_ids_that_the_copy_keeps(system: System, ledger: Ledger) -> None:
    deliver_by_rounds(system, ["+A1 -A2 +A3"])
    plan(system, ledger)
    copy_team(ledger, system.warehouse(), TEAM)

    assert seen(system, Table.OLD) == {}
    assert seen(system) == {"+A1 -A2 +A3": ALICE}


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
    b"x" * 100_000,
]


@pytest.mark.parametrize("rows", [1, 4, 1000], ids=["an id a slice", "four ids a slice", "one slice"])
def test_odd_ids_arrive_as_they_were(system: System, ledger: Ledger, rows: int) -> None:
    insert_old(system, [event(f"+A{number}", id_) for number, id_ in enumerate(ODD_IDS, 1)])
    plan(system, ledger)
    in_slices_of(ledger, rows)
    copy_team(ledger, system.warehouse(), TEAM)

    assert sorted(row[1] for row in rows_of(system, Table.NEW)) == sorted(ODD_IDS)
    assert_slices_tile_the_keys(system)
    if rows == 1:
        assert {row[0] for row in slices(system)} == set(ODD_IDS)


@pytest.mark.parametrize("rows", [1, 7, 100, 250, 251], ids=lambda rows: f"{rows} rows a slice")
def test_slices_tile_the_keys_and_copy_each_id_once(system: System, ledger: Ledger, rows: int) -> None:
    ids = 250 if rows > 1 else 25
    many_ids(system, ids)
    many_ids(system, 100, team_id=TEAM - 1)
    many_ids(system, 100, team_id=TEAM + 1)
    plan(system, ledger)
    in_slices_of(ledger, rows)
    copy_team(ledger, system.warehouse(), TEAM)

    assert_slices_tile_the_keys(system)
    assert len(slices(system)) == -(-ids // rows)
    assert sum(row[2] for row in slices(system)) == ids
    copied = rows_of(system, Table.NEW)
    assert {row[0] for row in copied} == {TEAM}
    assert sorted(row[1].decode() for row in copied) == sorted(map(str, range(ids)))
    team = system.teams()[TEAM]
    assert (team.status, team.rows_copied, team.slices_done) == ("copied", ids, len(slices(system)))
    assert team.error is None


def test_an_id_with_more_rows_than_a_slice_is_one_slice(system: System, ledger: Ledger) -> None:
    insert_old(system, [event("+A1", "a")])
    for second in range(1, 15):
        insert_old(system, [event(f"{'+' if second % 2 else '-'}A{second}", "crowded"), event(f"+B{second}", "z")])
    insert_old(system, [event("+B15", "crowded")])
    plan(system, ledger)
    in_slices_of(ledger, 3)
    copy_team(ledger, system.warehouse(), TEAM)

    assert_slices_tile_the_keys(system)
    assert seen(system) == {"a": ALICE, "crowded": BOB, "z": BOB}
    assert len(rows_of(system, Table.NEW)) == 3


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


FAT = "leftPad(toString(number), 8, '0') || repeat('x', 4000)"


@pytest.mark.slow
def test_a_slice_that_meets_the_memory_limit_is_split(system: System, ledger: Ledger) -> None:
    many_ids(system, 12_000, id_=FAT)
    plan(system, ledger)
    copy_team(ledger, system.warehouse(max_memory_usage=40 * MEGABYTE), TEAM)

    team = system.teams()[TEAM]
    assert team.slice_rows is not None
    assert team.slice_rows < 12_000
    assert team.slices_done == len(slices(system)) > 1
    assert_slices_tile_the_keys(system)
    assert team.rows_copied == 12_000
    counts = "SELECT count(), uniqExact(distinct_id) FROM person_distinct_id2"
    assert system.clickhouse.query(counts).result_rows == [(12_000, 12_000)]


@pytest.mark.parametrize(
    "budget",
    [
        pytest.param(20, id="to copy"),
        pytest.param(2, id="to find the slice's end", marks=pytest.mark.xfail(strict=True, reason="raw error 241")),
    ],
)
def test_a_budget_too_small_for_the_smallest_slice_is_told(system: System, ledger: Ledger, budget: int) -> None:
    many_ids(system, 3000, id_=FAT)
    plan(system, ledger)
    with pytest.raises(CopyError, match="does not fit into max_memory_usage.*greater max_memory_usage") as refused:
        copy_team(ledger, system.warehouse(max_memory_usage=budget * MEGABYTE), TEAM)
    assert reaction(refused.value) is Reaction.FAIL
    assert slices(system) == []

    copy_team(ledger, system.warehouse(), TEAM)
    assert system.teams()[TEAM].rows_copied == 3000


def test_a_slice_whose_checkpoint_was_lost_is_copied_again_and_no_other(system: System, ledger: Ledger) -> None:
    many_ids(system, 100)
    plan(system, ledger)
    in_slices_of(ledger, 10)
    copy_until_postgres_is_lost(system, ledger, at_slice=4)
    finished = slices(system)
    assert len(finished) == 3
    assert len(rows_of(system, Table.NEW)) == 40, "the fourth slice was inserted, its checkpoint was not"

    copy_team(system.ledger(), system.warehouse(), TEAM)

    assert slices(system)[:3] == finished
    assert_slices_tile_the_keys(system)
    assert len(slices(system)) == 10
    assert len(rows_of(system, Table.NEW)) == 110, "ten rows twice, for a slice is safe to run again"
    assert system.teams()[TEAM].rows_copied == 100
    once = seen(system)
    assert len(once) == 100
    merge(system, Table.NEW)
    assert seen(system) == once
    assert len(rows_of(system, Table.NEW)) == 100


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
    deliver_by_rounds(system, list(LIVE))
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
        ({"max_execution_time": 0.001, "timeout_before_checking_execution_speed": 0}, Reaction.RETRY),
        ({"max_rows_to_read": 10}, Reaction.FAIL),
    ],
    ids=["the query's memory limit", "the user's memory limit", "a timeout", "a limit that no retry helps"],
)
def test_what_a_limit_of_clickhouse_means(system: System, settings: dict[str, Any], expected: Reaction) -> None:
    with system.client() as client:
        heavy = "SELECT groupArray(toString(number)) FROM numbers(10000000) FORMAT Null"
        error = fails_with(DatabaseError, lambda: client.command(heavy, settings=settings))
    assert reaction(error) is expected, str(error)


def test_a_missing_table_fails_at_once(system: System, ledger: Ledger) -> None:
    plan(system, ledger)
    ledger.plan({TEAM: 1})
    system.clickhouse.command("DROP TABLE person_distinct_id SYNC")
    error = fails_with(DatabaseError, lambda: copy_team(ledger, system.warehouse(), TEAM))
    assert reaction(error) is Reaction.FAIL


def test_a_lost_connection_to_postgres_is_worth_a_retry(system: System, ledger: Ledger) -> None:
    ledger.create()
    pid = ledger.connection.info.backend_pid
    system.postgres.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    error = fails_with(psycopg.OperationalError, ledger.teams)
    assert reaction(error) is Reaction.RETRY


def test_a_missing_column_in_postgres_fails_at_once(system: System, ledger: Ledger) -> None:
    ledger.create()
    system.postgres.execute("ALTER TABLE pdi2_migration.team DROP COLUMN slice_rows")
    assert reaction(fails_with(psycopg.Error, ledger.teams)) is Reaction.FAIL


def test_a_busy_user_interrupts_the_copy_which_goes_on_where_it_stopped(system: System, ledger: Ledger) -> None:
    many_ids(system, 60)
    plan(system, ledger)
    in_slices_of(ledger, 20)
    copy_until_postgres_is_lost(system, ledger, at_slice=2)
    ledger = system.ledger()
    busy = system.warehouse()
    busy._client.set_client_setting("max_memory_usage_for_user", 1000)
    error = fails_with(DatabaseError, lambda: copy_team(ledger, busy, TEAM))
    assert reaction(error) is Reaction.RETRY, str(error)
    finished = slices(system)
    assert len(finished) == 1

    copy_team(ledger, system.warehouse(), TEAM)
    assert slices(system)[:1] == finished
    assert len(seen(system)) == 60
