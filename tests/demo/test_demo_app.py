"""The demo application on the real engines: what the other tests take for granted."""

import itertools
import math
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from uuid import UUID, uuid4

import clickhouse_connect
import psycopg
import pytest
from clickhouse_connect.driver.client import Client
from pdi2 import sql as statements

from demo import chaos, schema
from demo import postgres as embedded
from demo.reader import persons_in, team_in, truth_of
from demo.schema import MIGRATION, Table
from demo.seed import RARE_IDS, Seeded, seed
from demo.switches import READS, WRITES, Switches, set_switch
from demo.writer import Writer, deliver

TEAM = 7
ODD_IDS = [
    "",
    "o'brien",
    'a "b"',
    "back\\slash\\",
    "\\N",
    "line\nbreak\r\t",
    "naïve 人 🦔",
    "長" * 400,
    "NULL",
]


@pytest.fixture
def postgres(postgres_server: embedded.Postgres) -> Iterator[psycopg.Connection]:
    name = f"test_{uuid4().hex}"
    postgres_server.create_database(name, template="posthog_template")
    with postgres_server.connect(name) as connection:
        schema.add_team(connection, TEAM)
        yield connection


@pytest.fixture
def clickhouse(clickhouse_path: str) -> Iterator[Client]:
    name = f"test_{uuid4().hex}"
    with clickhouse_connect.get_client(interface="chdb", path=clickhouse_path) as client:
        client.command(f"CREATE DATABASE {name}")
    with clickhouse_connect.get_client(interface="chdb", path=clickhouse_path, database=name) as client:
        schema.create_clickhouse(client)
        yield client
        client.command(f"DROP DATABASE {name}")


@pytest.fixture
def writer(postgres: psycopg.Connection, clickhouse: Client) -> Writer:
    """A writer of both tables. Each of its messages is one second later than the one before."""
    set_switch(postgres, WRITES, "both")
    seconds = itertools.count(1_640_000_000)
    return Writer(postgres, clickhouse, Switches(postgres), clock=lambda: next(seconds))


def complete(postgres: psycopg.Connection, status: int = 2) -> None:
    postgres.execute("UPDATE posthog_asyncmigration SET status = %s WHERE name = %s", [status, MIGRATION])


def test_both_tables_and_postgres_agree(writer: Writer, postgres: psycopg.Connection, clickhouse: Client) -> None:
    choose = random.Random(1)
    ids = [f"id {number}" for number in range(60)]
    for distinct_id in ids:
        writer.create(TEAM, distinct_id)
    for _ in range(60):
        distinct_id = choose.choice(ids)
        # A new person each time: an id that returns to a person it left is lost to the old table's reader.
        person = writer.create(TEAM, f"also {uuid4()}")
        writer.identify(TEAM, distinct_id, person)
        if choose.random() < 0.3:
            writer.merge(TEAM, person, writer.create(TEAM, f"winner {uuid4()}"))
        if choose.random() < 0.2:
            writer.flush()
    for distinct_id in ids[:10]:
        writer.delete(TEAM, distinct_id)
    writer.flush()

    truth = truth_of(postgres, TEAM)
    assert len(truth) > 110
    assert not truth.keys() & set(ids[:10])
    assert team_in(clickhouse, Table.OLD, TEAM) == truth
    assert team_in(clickhouse, Table.NEW, TEAM) == truth
    assert persons_in(clickhouse, Table.NEW, TEAM, ids) == {distinct_id: truth[distinct_id] for distinct_id in ids[10:]}


def test_a_relinked_pair_is_lost_to_the_old_reader_until_a_merge(
    writer: Writer, postgres: psycopg.Connection, clickhouse: Client
) -> None:
    person = writer.create(TEAM, "id")
    writer.flush()
    writer.relink(TEAM, "id")
    for message in writer.outbox:
        deliver(clickhouse, [message])

    assert postgres.execute("SELECT version FROM posthog_persondistinctid").fetchall() == [(1,)]
    assert team_in(clickhouse, Table.NEW, TEAM) == {"id": person}
    assert team_in(clickhouse, Table.OLD, TEAM) == {}
    clickhouse.command("OPTIMIZE TABLE person_distinct_id FINAL")
    assert team_in(clickhouse, Table.OLD, TEAM) == {"id": person}


def test_a_deleted_id_has_a_tombstone_that_hides_its_next_life(
    writer: Writer, postgres: psycopg.Connection, clickhouse: Client
) -> None:
    writer.create(TEAM, "id")
    writer.relink(TEAM, "id")
    writer.delete(TEAM, "id")
    writer.flush()
    tombstones = clickhouse.query("SELECT version FROM person_distinct_id2 WHERE is_deleted = 1").result_rows
    assert tombstones == [(101,)]

    person = writer.create(TEAM, "id")
    writer.flush()
    assert postgres.execute("SELECT version FROM posthog_persondistinctid").fetchall() == [(0,)]
    assert team_in(clickhouse, Table.OLD, TEAM) == {"id": person}
    assert team_in(clickhouse, Table.NEW, TEAM) == {}


@pytest.mark.parametrize("version", [0, None])
def test_a_silent_deletion_leaves_the_id_in_both_tables_and_lets_it_come_back(
    writer: Writer, postgres: psycopg.Connection, clickhouse: Client, version: int | None
) -> None:
    """PostHog 1.31 to 1.33 remove the row from Postgres and send nothing; tombstones came in mid-2022."""
    first = writer.create(TEAM, "id")
    writer.relink(TEAM, "id")
    writer.create(TEAM, "other")
    writer.flush()
    writer.delete_person(TEAM, first, silently=True)
    writer.delete(TEAM, "other", silently=True)

    assert writer.outbox == []
    assert truth_of(postgres, TEAM) == {}
    assert team_in(clickhouse, Table.NEW, TEAM).keys() == {"id", "other"}
    assert "other" in team_in(clickhouse, Table.OLD, TEAM)

    second = writer.create(TEAM, "id", version=version)
    writer.flush()
    assert postgres.execute("SELECT version FROM posthog_persondistinctid").fetchall() == [(version,)]
    assert team_in(clickhouse, Table.OLD, TEAM)["id"] == second
    assert team_in(clickhouse, Table.NEW, TEAM)["id"] == first, "its past life stands above it, at version 1"


def test_redelivery_and_disorder_change_no_answer(
    writer: Writer, postgres: psycopg.Connection, clickhouse: Client
) -> None:
    first, second = writer.create(TEAM, "a"), writer.create(TEAM, "b")
    writer.identify(TEAM, "a", second)
    writer.merge(TEAM, second, first)
    delivered = writer.flush()
    late_first = sorted(delivered, key=lambda message: str(message.row["_timestamp"]), reverse=True)
    deliver(clickhouse, [message for message in late_first if message.table is Table.NEW])

    assert team_in(clickhouse, Table.NEW, TEAM) == truth_of(postgres, TEAM) == {"a": first, "b": first}


def test_an_error_on_the_way_keeps_the_messages(writer: Writer, clickhouse: Client) -> None:
    person = writer.create(TEAM, "id")
    clickhouse.command("RENAME TABLE person_distinct_id2 TO away")
    with pytest.raises(Exception, match="person_distinct_id2"):
        writer.flush()
    clickhouse.command("RENAME TABLE away TO person_distinct_id2")
    writer.flush()

    assert writer.outbox == []
    assert clickhouse.query("SELECT _sign, _offset FROM person_distinct_id").result_rows == [(1, 1), (1, 1)]
    assert team_in(clickhouse, Table.NEW, TEAM) == {"id": person}


def test_a_clock_behind_misleads_the_old_table_only(
    writer: Writer, postgres: psycopg.Connection, clickhouse: Client
) -> None:
    writer.create(TEAM, "id")
    behind = Writer(postgres, clickhouse, writer.switches, clock=lambda: 1_640_000_000 - 300)
    person = behind.create(TEAM, "other")
    behind.identify(TEAM, "id", person)
    lost = behind.outbox.pop(-3)
    assert (lost.table, lost.row["_sign"]) == (Table.OLD, -1)
    writer.flush()
    behind.flush()

    assert team_in(clickhouse, Table.OLD, TEAM)["id"] != person
    assert team_in(clickhouse, Table.NEW, TEAM)["id"] == truth_of(postgres, TEAM)["id"] == person


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("identify", ["id", UUID(int=1)]),
        ("relink", ["no id"]),
        ("merge", [UUID(int=1), UUID(int=2)]),
        ("delete", ["no id"]),
    ],
    ids=["identify", "relink", "merge", "delete"],
)
def test_what_is_not_there_cannot_be_changed(
    writer: Writer, postgres: psycopg.Connection, operation: str, arguments: list[object]
) -> None:
    person = writer.create(TEAM, "id")
    with pytest.raises(LookupError, match=f"team {TEAM}"):
        getattr(writer, operation)(TEAM, *arguments)
    assert truth_of(postgres, TEAM) == {"id": person}
    assert len(writer.outbox) == 2


def test_each_write_switch_names_its_tables(postgres: psycopg.Connection, clickhouse: Client) -> None:
    stale = Writer(postgres, clickhouse, Switches(postgres, cache_seconds=math.inf))
    stale.create(TEAM, "before")
    for value, tables in [("both", {Table.OLD, Table.NEW}), ("new", {Table.NEW}), ("old", {Table.OLD})]:
        set_switch(postgres, WRITES, value)
        fresh = Writer(postgres, clickhouse, Switches(postgres, cache_seconds=0))
        fresh.create(TEAM, value)
        assert {message.table for message in fresh.outbox} == tables
        stale.create(TEAM, f"stale {value}")
    assert {message.table for message in stale.outbox} == {Table.OLD}


def test_reads_move_with_either_switch_and_stay_moved(postgres: psycopg.Connection) -> None:
    live, cached = Switches(postgres, cache_seconds=0), Switches(postgres, cache_seconds=math.inf)
    assert live.reads() == cached.reads() == Table.OLD

    complete(postgres)
    assert (live.reads(), cached.reads()) == (Table.NEW, Table.OLD)

    complete(postgres, status=4)
    assert live.reads() == Table.NEW, "a rollback reaches a process only after its restart"
    assert Switches(postgres).reads() == Table.OLD

    set_switch(postgres, READS, "new")
    assert Switches(postgres).reads() == Table.NEW


def test_without_instance_settings_the_row_is_the_switch(postgres: psycopg.Connection) -> None:
    postgres.execute("DROP TABLE posthog_instancesetting")
    switches = Switches(postgres, cache_seconds=0)
    assert (switches.writes(), switches.reads()) == (set(Table), Table.OLD)
    complete(postgres)
    assert (switches.writes(), switches.reads()) == (set(Table), Table.NEW), "a process asks once what it writes"
    assert Switches(postgres).writes() == {Table.NEW}, "and again once it is restarted"


def test_the_soaks_fault_patterns_match_real_statements() -> None:
    """A pattern that matches no statement would be a fault that never happens. A copy may use a staging table."""
    tables: dict[str, str] = defaultdict(lambda: "person_distinct_id2_staging_7")
    for what, name in {"the copy": "copy_simple", "the comparison": "digest_new"}.items():
        assert re.search(chaos.STATEMENTS[what], statements.clickhouse(name, tables)), what


def test_odd_ids_survive(writer: Writer, postgres: psycopg.Connection, clickhouse: Client) -> None:
    linked = {distinct_id: writer.create(TEAM, distinct_id) for distinct_id in ODD_IDS}
    writer.flush()
    assert truth_of(postgres, TEAM) == linked
    for table in Table:
        assert team_in(clickhouse, table, TEAM) == persons_in(clickhouse, table, TEAM, ODD_IDS) == linked


def test_bytes_that_are_no_text_stay_apart(clickhouse: Client) -> None:
    clickhouse.command(
        "INSERT INTO person_distinct_id (team_id, distinct_id, person_id, _timestamp, _offset) VALUES"
        " (7, unhex('FF'), generateUUIDv4(), now(), 1), (7, unhex('FE00'), generateUUIDv4(), now(), 2)"
    )
    assert team_in(clickhouse, Table.OLD, TEAM).keys() == {"\udcff", "\udcfe\x00"}


def everything(postgres: psycopg.Connection, clickhouse: Client, seeded: Seeded) -> list[object]:
    """All that does not depend on when ClickHouse merges."""
    truth = [truth_of(postgres, team_id) for team_id in seeded.team_ids]
    new = [team_in(clickhouse, Table.NEW, team_id) for team_id in seeded.team_ids]
    old = clickhouse.query("SELECT * FROM person_distinct_id FINAL ORDER BY ALL").result_rows
    return [seeded, truth, new, old]


@pytest.mark.slow
def test_the_same_seed_number_gives_the_same_data(postgres_server: embedded.Postgres, clickhouse_path: str) -> None:
    found = []
    for number, chosen in enumerate([1, 1, 2]):
        name = f"seed_{number}"
        postgres_server.create_database(name, template="posthog_template")
        with clickhouse_connect.get_client(interface="chdb", path=clickhouse_path) as client:
            client.command(f"CREATE DATABASE {name}")
        with (
            postgres_server.connect(name) as postgres,
            clickhouse_connect.get_client(interface="chdb", path=clickhouse_path, database=name) as clickhouse,
        ):
            schema.create_clickhouse(clickhouse)
            for table in Table:  # a merge, which may come at any moment, would collapse some of the rows
                clickhouse.command(f"SYSTEM STOP MERGES {table}")
            seeded = seed(postgres, clickhouse, rows=5000, teams=12, seed=chosen)
            found.append(everything(postgres, clickhouse, seeded))
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize("reused_ids", [False, True], ids=["mendable", "reused ids"])
def test_the_seed_is_consistent_and_hard(postgres: psycopg.Connection, clickhouse: Client, reused_ids: bool) -> None:
    postgres.execute("DELETE FROM posthog_team")
    clickhouse.command(f"SYSTEM STOP MERGES {Table.OLD}")  # one would collapse some of the rows before they are counted
    seeded = seed(postgres, clickhouse, rows=20_000, teams=12, reused_ids=reused_ids)

    assert len(seeded.team_ids) == 12
    assert seeded.old_rows == pytest.approx(20_000, rel=0.02)
    rows = clickhouse.query("SELECT team_id, count() FROM person_distinct_id GROUP BY team_id").result_rows
    sizes = [count for team_id in seeded.team_ids for found, count in rows if found == team_id]
    assert sizes[0] == pytest.approx(seeded.old_rows / 2, rel=0.03)
    assert sizes[-1] < 10

    orphans = """
        SELECT count(*) FROM posthog_persondistinctid AS link
        WHERE NOT EXISTS (SELECT FROM posthog_person p WHERE p.id = person_id AND p.team_id = link.team_id)
    """
    assert postgres.execute(orphans).fetchone() == (0,)

    wrong = 0
    for team_id in seeded.team_ids:
        truth, old = truth_of(postgres, team_id), team_in(clickhouse, Table.OLD, team_id)
        wrong += sum(truth.get(found) != old.get(found) for found in truth.keys() | old.keys())
    assert wrong > RARE_IDS / 2

    versions = {
        (team_id, distinct_id): version
        for team_id, distinct_id, version in postgres.execute(
            "SELECT team_id, distinct_id, version FROM posthog_persondistinctid"
        )
    }
    assert set(versions.values()) == {None, 0, 1, 2}
    newest = clickhouse.query(
        "SELECT team_id, distinct_id, max(version) FROM person_distinct_id2 GROUP BY team_id, distinct_id"
    ).result_rows
    ahead = [
        distinct_id
        for team_id, distinct_id, version in newest
        if (team_id, distinct_id) in versions and version > (versions[team_id, distinct_id] or 0)
    ]
    assert bool(ahead) == reused_ids


def test_life_goes_on_after_the_seed(postgres: psycopg.Connection, clickhouse: Client) -> None:
    postgres.execute("DELETE FROM posthog_team")
    seeded = seed(postgres, clickhouse, rows=2000, teams=3)
    team_id = seeded.team_ids[0]
    writer = Writer(postgres, clickhouse, Switches(postgres))
    person = writer.create(team_id, "after the seed")
    [message] = writer.outbox
    query = "SELECT max(_offset) < {offset:UInt64} FROM person_distinct_id"
    assert clickhouse.query(query, parameters={"offset": message.row["_offset"]}).result_rows == [(1,)]
    writer.flush()
    assert team_in(clickhouse, Table.OLD, team_id)["after the seed"] == person
