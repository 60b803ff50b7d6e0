"""Replicas and shards, as far as one engine without Keeper can tell: statements parsed, messages, settings at work."""

import re
import socket
import socketserver
import threading
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client
from conftest import System
from pdi2 import sql
from pdi2.core import cluster
from pdi2.core.clickhouse import CONSISTENT, IN_MEMORY, LOOKS, Warehouse, spilling
from pdi2.core.clickhouse_checks import TABLES
from pdi2.core.settings import Settings
from stories import ALICE, TEAM, insert_new, rows_of

from demo import schema
from demo.clickhouse_server import running
from demo.schema import Table

STATEMENTS = sorted(path.stem for path in Path(sql.__file__).parent.glob("clickhouse/*.sql"))
FRAGMENTS = {"slice_range", "moment", "winning_row", "id_hash", "never_merge"}
VALUES = {"Array": [], "String": "", "UUID": str(ALICE)}
REPLICATED = "'/clickhouse/tables/noshard/posthog.{table}', '{{replica}}-{{shard}}', "


@pytest.mark.parametrize("name", [name for name in STATEMENTS if name not in FRAGMENTS])
def test_the_engine_understands_every_statement(system: System, name: str) -> None:
    """What can be run here is run by other tests; SYSTEM SYNC REPLICA needs Keeper, and is parsed only."""
    text = sql.clickhouse(name, defaultdict(lambda: "a_table"))
    parameters = {parameter: VALUES.get(type_, 0) for parameter, type_ in re.findall(r"{(\w+):(\w+)", text)}
    assert system.clickhouse.command(f"EXPLAIN AST {text}", parameters)


@pytest.mark.parametrize("more", [{}, spilling(99)])
def test_a_statement_carries_the_settings_that_its_server_knows(system: System, more: dict[str, int]) -> None:
    sent = CONSISTENT | IN_MEMORY | more
    names = ", ".join(f"'{name}'" for name in sent)
    warehouse = system.warehouse()
    warehouse.command("CREATE TABLE told (name String, value String) ENGINE = MergeTree ORDER BY name")
    warehouse.command(
        f"INSERT INTO told SELECT name, value FROM system.settings WHERE name IN ({names})", settings=more
    )

    told = dict(system.clickhouse.query("SELECT name, value FROM told").result_rows)
    assert told == {name: str(value) for name, value in sent.items() if name in told}
    late = {"deduplicate_insert", "max_bytes_ratio_before_external_group_by", "enable_adaptive_aggregator"}
    assert sent.keys() - told.keys() <= late


def test_a_row_that_was_taken_away_can_be_written_again(system: System) -> None:
    """Where a table drops blocks that repeat an earlier one, as every replicated one does."""
    system.clickhouse.command(
        "ALTER TABLE person_distinct_id2 MODIFY SETTING non_replicated_deduplication_window = 100"
    )

    def written_again(write: Any) -> int:
        for _ in range(2):
            system.clickhouse.command(f"DELETE FROM person_distinct_id2 WHERE team_id = {TEAM}")
            write()
        return len(rows_of(system, Table.NEW))

    row = [TEAM, "id", ALICE, 0]
    columns = ["team_id", "distinct_id", "person_id", "version"]
    warehouse = system.warehouse()
    assert written_again(lambda: insert_new(system, ALICE, 0)) == 0, "the table does drop them"
    assert written_again(lambda: warehouse.insert("person_distinct_id2", columns, [row])) == 1


def test_a_table_that_is_not_replicated_has_nothing_to_wait_for(system: System) -> None:
    warehouse = system.warehouse()
    cluster.catch_up(warehouse)
    assert cluster.problems(warehouse) == []
    assert len(warehouse.servers()) == 1


@pytest.mark.parametrize("prefix", ["", "Replicated"])
@pytest.mark.parametrize("table", TABLES)
def test_the_engines_of_posthog_are_taken(table: str, prefix: str) -> None:
    wanted, by = TABLES[table]["engine"], TABLES[table]["by"]
    path = REPLICATED.format(table=table) if prefix else ""
    definition = (
        f"{prefix}{wanted}({path}{by}) ORDER BY {TABLES[table]['sorting_key']} SETTINGS index_granularity = 512"
    )
    assert cluster.engine_problem(table, prefix + wanted, definition, wanted, by) is None


@pytest.mark.parametrize(
    ("engine", "definition", "told"),
    [
        (
            "Distributed",
            "Distributed('posthog', 'd', 'local', rand())",
            "it stands before d.local of the cluster posthog",
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
def test_an_engine_that_is_not_taken_is_told_with_a_next_step(engine: str, definition: str, told: str) -> None:
    problem = cluster.engine_problem("person_distinct_id2", engine, definition, "ReplacingMergeTree", "version")
    assert problem
    assert problem.startswith(f"ClickHouse table person_distinct_id2 has the engine {engine}, not ReplacingMergeTree")
    assert told in problem


@pytest.mark.parametrize(
    ("replica", "told"),
    [
        ((0, 1, 1), None),
        ((0, 2, 3), None),
        ((0, 1, 2), "1 of 2 replicas are active, and an insert waits for 2"),
        ((0, 1, 3), "1 of 3 replicas are active, and an insert waits for 2"),
        ((1, 3, 3), "read-only"),
    ],
)
def test_too_few_replicas_are_told(replica: tuple[int, int, int], told: str | None) -> None:
    problem = cluster.replica_problem(b"person_distinct_id2", *replica)
    assert (problem is None) == (told is None)
    assert told is None or told in (problem or "")


def test_a_balancer_is_told() -> None:
    assert cluster.balancer_problems({"one:9000"}) == []
    [problem] = cluster.balancer_problems({"two:9000", "one:9000"})
    assert "several replicas in turn (one:9000, two:9000)" in problem


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A server that knows a cluster of two shards, `posthog`, and can reach neither."""
    with running(tmp_path_factory.mktemp("sharded")) as server:
        yield {"host": "127.0.0.1", "port": server.port}


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


def test_a_look_for_a_balancer_takes_a_new_connection_each_time(sharded: dict[str, Any]) -> None:
    with Relay(sharded["port"]) as relay:
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        port = relay.server_address[1]
        connect = partial(clickhouse_connect.get_client, host="127.0.0.1", port=port)
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
def test_one_of_several_shards_is_told(client: Client, sharded: dict[str, Any], behind: Table) -> None:
    def problems() -> list[str]:
        connect = partial(clickhouse_connect.get_client, **sharded, database="posthog")
        with Warehouse(connect, "test", Settings().max_memory_usage) as warehouse:
            return cluster.problems(warehouse)

    client.command(f"CREATE TABLE elsewhere AS {behind} ENGINE = Distributed('posthog', 'another', '{behind}')")
    assert problems() == []
    client.command(
        f"CREATE TABLE front AS {behind} ENGINE = Distributed('posthog', currentDatabase(), {behind}, rand())"
    )
    [problem] = problems()
    assert "one of 2 shards: the Distributed table front on the cluster posthog" in problem
