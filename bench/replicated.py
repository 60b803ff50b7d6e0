"""Measures the copy on two replicas, in separate processes with a ZooKeeper, and on a plain table of the same server.

Each copy is measured until both replicas have all of it.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from clickhouse_connect.driver.client import Client
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.measuring import Cost

from bench.__main__ import MEMORY, NO_LIMIT, Bench, Side, _line, statement
from bench.statements import PLAIN, POSTHOG, markdown
from demo import cluster
from demo import postgres as embedded
from demo.schema import create_clickhouse

NO_MERGES = "ALTER TABLE person_distinct_id MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 1"
ROWS, SHARES = 5_000_000, (2, 30)


class OnReplicas(Bench):
    """The bench on replicated tables; without `keeper`, on plain tables of the first server."""

    def __init__(self, servers: list[cluster.Replica], server: embedded.Postgres, runs: int, *, keeper: bool) -> None:
        self.servers = servers if keeper else servers[:1]
        self.server, self.runs, self.rows, self.keeper = server, runs, 0, keeper
        self.database = ""

    def seed(self, rows: int, complex_percent: float) -> None:
        self.database = f"bench_{time.time_ns()}"
        for number, _ in enumerate(self.servers):
            with self.client(number, "default") as client:
                client.command(f"CREATE DATABASE {self.database}")
            path = f"/clickhouse/tables/noshard/{self.database}" if self.keeper else ""
            with self.client(number, self.database) as client:
                create_clickhouse(client, keeper_path=path)
                client.command(NO_MERGES)  # each replica assigns merges and needs the setting
        self.fill(rows, complex_percent)
        self.create_postgres()
        self.everywhere("person_distinct_id")

    def client(self, number: int, database: str) -> Client:
        return self.servers[number].connect(database=database, send_receive_timeout=3600)

    def connect(self) -> Client:
        return self.client(0, self.database)

    def everywhere(self, table: str) -> None:
        """Waits until every replica has what the first has."""
        for number in range(1, len(self.servers)):
            with self.client(number, self.database) as client:
                client.command(f"SYSTEM SYNC REPLICA {table} LIGHTWEIGHT")

    def quiet(self) -> None:
        super().quiet()
        self.everywhere("person_distinct_id2")

    def until_everywhere(self, run: Callable[[Warehouse], Cost], warehouse: Warehouse) -> Cost:
        cost = run(warehouse)
        began = time.monotonic()
        self.everywhere("person_distinct_id2")
        cost.seconds += time.monotonic() - began
        return cost

    def drop(self) -> None:
        for number, _ in enumerate(self.servers):
            with self.client(number, "default") as client:
                client.command(f"DROP DATABASE {self.database} SYNC")


def on_two_replicas(directory: Path, server: embedded.Postgres, runs: int) -> str:
    lines = []
    with cluster.running(directory / "cluster", 2) as two:
        replicated, plain = (OnReplicas(two, server, runs, keeper=keeper) for keeper in (True, False))
        for share in SHARES:
            replicated.seed(ROWS, share)
            plain.seed(ROWS, share)
            ways: list[tuple[str, Callable[[Warehouse], Cost], int]] = [
                ("PostHog's statement", partial(statement, POSTHOG), NO_LIMIT),
                ("plain INSERT SELECT", partial(statement, PLAIN), NO_LIMIT),
                ("this copy", replicated.ours, MEMORY),
            ]
            sides = [Side(name, partial(replicated.until_everywhere, run), memory) for name, run, memory in ways]
            on_plain = [
                Side("plain INSERT SELECT, tables not replicated", partial(statement, PLAIN), NO_LIMIT),
                Side("this copy, tables not replicated", plain.ours, MEMORY),
            ]
            for _ in range(runs):
                replicated.take_turns(sides, 1)
                plain.take_turns(on_plain, 1)
            lines += [_line(replicated, share, side, [sides[0], on_plain[1]]) for side in [*sides, *on_plain]]
            replicated.drop()
            plain.drop()
    return markdown(lines)
