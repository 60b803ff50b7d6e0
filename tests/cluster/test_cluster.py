"""Clusters as one server knows them: messages about replicas and errors, and which shards and engines are refused."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError, StreamFailureError
from conftest import LOCAL, System
from pdi2.core.cluster import ours, replicas
from pdi2.core.engines.clickhouse import LOOKS, Warehouse
from pdi2.core.engines.failures import Reaction, reaction, waits
from pdi2.core.plan import cluster_checks
from pdi2.core.plan.clickhouse_checks import TABLES
from pdi2.core.state.settings import Settings
from pdi2.core.switch.gate import GateError, certify, switch_reads
from stories import (
    ALICE,
    NO_WAIT,
    TEAM,
    insert_new,
    migrate,
    rows_of,
    two_ids_each,
)

from demo import schema
from demo.clickhouse_server import running
from demo.schema import Table

REPLICATED = "'/clickhouse/tables/noshard/posthog.{table}', '{{replica}}-{{shard}}', "


def test_a_row_that_was_taken_away_can_be_written_again(system: System) -> None:
    """The table drops blocks that repeat an earlier one, as every replicated table does."""
    system.clickhouse.command(
        "ALTER TABLE person_distinct_id2 MODIFY SETTING non_replicated_deduplication_window = 100"
    )

    def written_again(write: Any) -> int:
        for _ in range(2):
            system.clickhouse.command(
                f"DELETE FROM person_distinct_id2 WHERE team_id = {TEAM}",
                settings={"allow_experimental_lightweight_delete": 1, "mutations_sync": 1},  # 22.12
            )
            write()
        return len(rows_of(system, Table.NEW))

    row = [TEAM, "id", ALICE, 0]
    columns = ["team_id", "distinct_id", "person_id", "version"]
    warehouse = system.warehouse()
    assert written_again(lambda: insert_new(system, ALICE, 0)) == 0, "the table does drop them"
    assert written_again(lambda: warehouse.insert("person_distinct_id2", columns, [row])) == 1


def test_a_table_that_is_not_replicated_has_nothing_to_wait_for(system: System) -> None:
    warehouse = system.warehouse()
    cluster_checks.catch_up(warehouse)
    assert cluster_checks.problems(warehouse) == []
    assert len(warehouse.servers()) == 1


@pytest.mark.skipif(LOCAL, reason="clickhouse-local of before 24 does not tell its parts")
def test_what_was_verified_in_a_table_that_is_exchanged_is_verified_again(system: System) -> None:
    """A rebuilt copy of the table may lack what came while it was built, and its recheck would not look there."""
    two_ids_each(system, TEAM)
    ledger = system.ledger()
    migrate(system, ledger)
    certify(ledger, system.warehouse(), NO_WAIT)
    for _ in range(2):
        ours.follow(ledger, system.warehouse())
        assert ledger.team(TEAM).status == "verified"

    system.clickhouse.command(f"CREATE TABLE rebuilt AS {Table.NEW}")
    system.clickhouse.command(f"RENAME TABLE {Table.NEW} TO was, rebuilt TO {Table.NEW}")  # or EXCHANGE TABLES
    with pytest.raises(GateError):
        switch_reads(ledger, system.warehouse(), NO_WAIT)

    assert ledger.team(TEAM).status == "copied"
    assert system.switches()["reads"] == "old"
    assert system.value("SELECT count(*) FROM pdi2_migration.event WHERE what = 'connected_to'") == 2


@pytest.mark.parametrize("prefix", ["", "Replicated"])
@pytest.mark.parametrize("table", TABLES)
def test_the_engines_of_posthog_are_supported(table: str, prefix: str) -> None:
    wanted, by = TABLES[table]["engine"], TABLES[table]["by"]
    path = REPLICATED.format(table=table) if prefix else ""
    definition = (
        f"{prefix}{wanted}({path}{by}) ORDER BY {TABLES[table]['sorting_key']} SETTINGS index_granularity = 512"
    )
    assert cluster_checks.engine_problem(table, prefix + wanted, definition, wanted, by) is None


@pytest.mark.parametrize(
    ("engine", "definition", "told"),
    [
        (
            "Distributed",
            "Distributed('posthog', 'd', 'local', rand())",
            "it only forwards to d.local of the cluster posthog, and takes neither a DELETE nor a slice's parts. There "
            "the table must be called person_distinct_id2 too. See",
        ),
        ("SharedReplacingMergeTree", "SharedReplacingMergeTree('/a', '{r}', version)", "ClickHouse Cloud"),
        (
            "ReplicatedReplacingMergeTree",
            "ReplicatedReplacingMergeTree('/a', '{r}') ORDER BY x",
            "not ReplacingMergeTree(",
        ),
        ("View", "", "not a view of it"),
    ],
)
def test_an_engine_that_is_not_supported_is_reported_with_a_next_step(engine: str, definition: str, told: str) -> None:
    problem = cluster_checks.engine_problem("person_distinct_id2", engine, definition, "ReplacingMergeTree", "version")
    assert problem
    assert problem.startswith(f"ClickHouse table person_distinct_id2 has the engine {engine}, not ReplacingMergeTree")
    assert told in problem


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"active": 2, "total": 3, "away": ("r3",)}, None),
        (
            {"active": 1, "total": 2, "away": ("r2",)},
            "1 of 2 replicas are active, and an insert waits for 2. Away: r2.",
        ),
        ({"active": 1, "total": 3, "away": ("r2", "r3")}, "insert waits for 2. Away: r2, r3"),
        # as seen on 26.9 when ZooKeeper was frozen for some seconds, then for longer than the session
        ({"active": 0, "total": 0, "keeper_exception": "Connection loss"}, "Keeper is lost (Connection loss)"),
        ({"is_readonly": 1, "is_session_expired": 1, "active": 0, "total": 0}, "Keeper is lost. See whether Keeper is"),
        # as seen when Keeper was restored from an older state, and the replica restarted after that
        ({"is_readonly": 1, "active": 0}, "UNEXPECTED_DATA_PARTS, and a start with the file flags/force_restore_data"),
        # as seen when its data was gone
        ({"is_readonly": 1, "active": 0, "total": 0, "keeper_exception": "No node, path /a"}, "SYSTEM RESTORE REPLICA"),
    ],
)
def test_what_is_wrong_with_a_replica_is_reported(changes: dict[str, Any], told: str | None) -> None:
    sound = ours.State(Table.NEW, "/a", "r1", 0, 0, 2, 2, ("r1", "r2"), (), 0, 0, "", "")
    problem = ours.problem_of(replace(sound, **changes))
    assert (problem is None) == (told is None)
    assert told is None or told in (problem or "")


@pytest.mark.parametrize(
    ("parts", "there", "lacks"),
    [
        ("all_0_0_0 all_1_1_0", "all_0_0_0 all_1_1_0", 0),
        ("all_0_0_0 all_1_1_0", "all_0_1_1", 0),
        ("all_0_0_0 all_1_1_0", "all_0_0_0", 1),
        ("all_0_0_0_5", "all_0_0_0", 1),
        ("all_0_0_0_5", "all_0_7_2_8", 0),
        ("202601_0_0_0", "202602_0_7_2", 1),
        ("all_0_7_2", "all_0_3_1 all_4_7_1", 0),
        ("all_0_7_2", "all_0_0_0 all_0_3_1 all_4_4_0 all_4_7_1", 0),
        ("all_0_7_2", "all_0_3_1 all_5_7_1", 1),
        ("all_0_7_2", "all_1_3_1 all_4_7_1", 1),
        ("all_0_7_2", "all_0_3_1 all_4_6_1", 1),
        ("all_0_7_2_8", "all_0_3_1_8 all_4_7_1_9", 0),
        ("all_0_7_2_8", "all_0_3_1_8 all_4_7_1", 1),
        ("202601_0_7_2", "202601_0_3_1 202602_4_7_1", 1),
        ("all_0_0_1", "all_0_0_0", 0),
        ("all_3_3_0", "", 1),
        ("", "all_0_0_0", 0),
    ],
)
def test_a_part_is_there_if_others_have_its_blocks(parts: str, there: str, lacks: int) -> None:
    assert replicas.lacking(set(parts.split()), set(there.split())) == lacks


def test_a_load_balancer_is_reported() -> None:
    assert cluster_checks.balancer_problems({"one:9000"}) == []
    [problem] = cluster_checks.balancer_problems({"two:9000", "one:9000"})
    assert "several replicas in turn (one:9000, two:9000)" in problem


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A server that knows a cluster of two shards, `posthog`, and can reach neither shard."""
    with running(tmp_path_factory.mktemp("sharded")) as server:
        yield server.address


class Relay(socketserver.ThreadingTCPServer):
    """Passes connections on, as a balancer does, and counts them."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.behind = ("127.0.0.1", port)
        self.taken = 0

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.taken += 1
        with socket.create_connection(self.behind) as server:
            answers = threading.Thread(target=_pass_on, args=(server, request), daemon=True)
            answers.start()
            _pass_on(request, server)
            answers.join()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    while data := source.recv(1 << 16):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)


def test_each_look_for_a_load_balancer_takes_a_new_connection(sharded: dict[str, Any]) -> None:
    with Relay(sharded["port"]) as relay:
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        connect = partial(clickhouse_connect.get_client, **sharded | {"port": relay.server_address[1]})
        with Warehouse(connect, "test", Settings().max_memory_usage) as warehouse:
            before = relay.taken
            assert len(warehouse.servers()) == 1
            assert relay.taken == before + LOOKS
        relay.shutdown()


@pytest.fixture
def client(sharded: dict[str, Any]) -> Iterator[Client]:
    with clickhouse_connect.get_client(**sharded) as client:
        client.command("DROP DATABASE IF EXISTS posthog SYNC")
        client.command("CREATE DATABASE posthog")
        client.database = "posthog"
        schema.create_clickhouse(client)
        yield client


@pytest.mark.parametrize("behind", list(Table))
def test_one_of_several_shards_is_reported(client: Client, sharded: dict[str, Any], behind: Table) -> None:
    def problems() -> list[str]:
        connect = partial(clickhouse_connect.get_client, **sharded, database="posthog")
        with Warehouse(connect, "test", Settings().max_memory_usage) as warehouse:
            return cluster_checks.problems(warehouse)

    client.command(f"CREATE TABLE elsewhere AS {behind} ENGINE = Distributed('posthog', 'another', '{behind}')")
    assert problems() == []
    client.command(
        f"CREATE TABLE front AS {behind} ENGINE = Distributed('posthog', currentDatabase(), {behind}, rand())"
    )
    [problem] = problems()
    assert "one of 2 shards: the Distributed table front on the cluster posthog" in problem


@pytest.mark.parametrize("code", [225, 236, 242, 244, 252, 285, 289, 319, 341, 667])
def test_what_replicas_and_keeper_end_passes_and_takes_no_try(code: int) -> None:
    error = DatabaseError("in the words of the engine", code=code)
    assert reaction(error) is Reaction.RETRY
    assert waits(error)


@pytest.mark.parametrize(
    ("error", "passes", "without_a_try"),
    [
        (DatabaseError("Coordination error: Connection loss, path /a", code=999), True, True),
        (DatabaseError("Coordination error: Session expired", code=999), True, True),
        (DatabaseError("Coordination error: Bad version", code=999), True, False),
        (DatabaseError("HTTP driver received HTTP status 400, server response: Bad Request"), False, False),
        (DatabaseError("HTTP driver received HTTP status 413"), False, False),
        (DatabaseError("HTTP driver received HTTP status 429"), True, False),
        (DatabaseError("HTTP driver received HTTP status 503"), True, False),
        (OperationalError("Read timed out"), True, False),
        (DatabaseError("Query was cancelled", code=394), True, False),
        (StreamFailureError("Stream ended unexpectedly (connection closed by server)"), True, False),
        (DatabaseError("Table is in readonly mode", code=164), False, False),
    ],
)
def test_which_failures_pass_and_which_use_up_a_try(error: DatabaseError, passes: bool, without_a_try: bool) -> None:
    assert (reaction(error) is Reaction.RETRY) == passes
    assert waits(error) == without_a_try
