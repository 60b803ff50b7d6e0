"""Measures and writes bench/results.md. Sides take turns in one run; medians and ratios are what counts."""

import argparse
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import clickhouse_connect
import psutil
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from pdi2.core.copy import copying
from pdi2.core.copy.pieces import Budget
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import describe
from pdi2.core.engines.measuring import Cost
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings

from bench.statements import PARTS, PLAIN, POSTHOG, TEAM, markdown, seed
from demo import postgres as embedded
from demo.schema import create_clickhouse, create_postgres

MEMORY = Settings().max_memory_usage
NO_LIMIT = 0
MILLION = 1_000_000


@dataclass
class Side:
    """One way to copy, and what its runs cost."""

    name: str
    run: Callable[[Warehouse], Cost]
    memory: int = NO_LIMIT
    costs: list[Cost] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return statistics.median(cost.seconds for cost in self.costs)

    @property
    def peak(self) -> int:
        return max(cost.peak_memory or 0 for cost in self.costs)


def statement(text: str, warehouse: Warehouse) -> Cost:
    with warehouse.measured() as cost:
        warehouse.command(text, {"team_id": TEAM})
    return cost


def plain_within(memory: int, warehouse: Warehouse) -> Cost:
    """The least that a copy within this memory can cost: blocks as small as a copy's, and no ids told apart."""
    with warehouse.measured() as cost:
        warehouse.command(PLAIN, {"team_id": TEAM}, Budget(memory).insert_settings(staged=False))
    return cost


class Bench:
    def __init__(self, directory: Path, server: embedded.Postgres, runs: int) -> None:
        self.path = str(directory / "clickhouse")
        self.server = server
        self.runs = runs
        self.rows = 0
        self.numbers = iter(range(1_000_000))
        self.root = clickhouse_connect.get_client(interface="chdb", path=self.path)
        self.database = ""

    def seed(self, rows: int, complex_percent: float) -> None:
        """Create a fresh pair of tables. The source has PARTS parts that overlap over the whole range of ids."""
        if self.database:
            self.root.command(f"DROP DATABASE {self.database} SYNC")
        self.database = f"bench_{next(self.numbers)}"
        self.root.command(f"CREATE DATABASE {self.database}")
        with self.connect() as client:
            create_clickhouse(client)
        self.fill(rows, complex_percent)
        self.create_postgres()

    def create_postgres(self) -> None:
        """Create PostHog's tables, because the copy writes its progress to PostHog's migration row."""
        self.server.create_database(self.database)
        with closing(self.server.connect(self.database)) as connection:
            create_postgres(connection)

    def fill(self, rows: int, complex_percent: float) -> None:
        with self.connect() as client:
            self.rows = seed(client, rows, complex_percent)

    def connect(self) -> Client:
        return clickhouse_connect.get_client(interface="chdb", path=self.path, database=self.database)

    def take_turns(self, sides: list[Side], runs: int | None = None) -> None:
        for _ in range(runs or self.runs):
            for side in sides:
                self.quiet()
                with Warehouse(self.connect, side.name, side.memory) as warehouse:
                    cost = side.run(warehouse)
                side.costs.append(cost)
                print(f"  {self.rows:>12,} rows  {side.name:<28} {cost.seconds:7.2f} s", flush=True)

    def quiet(self) -> None:
        """Empty the target, and wait until no merge of the last run is running."""
        with self.connect() as client:
            client.command("TRUNCATE TABLE person_distinct_id2 SYNC")
            while client.query("SELECT count() FROM system.merges").result_rows[0][0]:
                time.sleep(0.1)

    def ours(self, warehouse: Warehouse, range_rows: int | None = None) -> Cost:
        """The copy as the DAG's task runs it, including its ledger and its own measuring."""
        with closing(self.server.connect(self.database)) as connection:
            connection.execute("DROP SCHEMA IF EXISTS pdi2_migration CASCADE")
            ledger = Ledger(connection, "bench", "bench")
            ledger.create()
            ledger.plan({TEAM: self.rows})
            if range_rows:
                ledger.remember_range_rows(TEAM, range_rows)
            started = time.monotonic()
            copying.copy_team(ledger, warehouse, TEAM)
            return Cost(time.monotonic() - started, ledger.team(TEAM).peak_memory)

    def sides(self) -> list[Side]:
        return [
            Side("PostHog's statement", partial(statement, POSTHOG)),
            Side("plain INSERT SELECT", partial(statement, PLAIN)),
            Side("plain, in the copy's memory", partial(plain_within, MEMORY), MEMORY),
            Side("this copy", self.ours, MEMORY),
        ]


def against_others(bench: Bench, cases: list[tuple[int, int]]) -> str:
    """Runs cases, each a number of rows and a percentage of complex ids: neither time per row nor memory may grow with
    the team."""
    lines = []
    for rows, share in cases:
        bench.seed(rows, share)
        sides = bench.sides()
        bench.take_turns(sides)
        lines += [_line(bench, share, side, sides[:2]) for side in sides]
    return markdown(lines)


def against_itself(bench: Bench, sides: list[Side]) -> str:
    bench.take_turns(sides)
    return markdown([_line(bench, 2, side, sides[:1]) for side in sides])


def vary_ranges(bench: Bench, rows: int) -> str:
    bench.seed(rows, 2)
    sides = [Side("default ranges", bench.ours, MEMORY)]
    for many in (rows // 4, rows // 16, rows // 64):
        sides.append(Side(f"ranges of {many:,} rows", partial(bench.ours, range_rows=many), MEMORY))
    return against_itself(bench, sides)


def halve_memory(bench: Bench, rows: int) -> str:
    """Runs the copy with half its memory limit. As a control, PostHog's statement must fail under the default limit."""
    bench.seed(rows, 2)
    half = MEMORY // 2
    sides = [Side("default limit", bench.ours, MEMORY), Side(f"{half / 1e6:.0f} MB limit", bench.ours, half)]
    table = against_itself(bench, sides)
    bench.quiet()
    with Warehouse(bench.connect, "control", MEMORY) as warehouse:
        try:
            warehouse.command(POSTHOG, {"team_id": TEAM})
        except DatabaseError as error:
            return f"{table}\n\nThe control, PostHog's statement under {MEMORY / 1e6:.0f} MB: {describe(error)}"
    raise SystemExit(f"The control did not fail: PostHog's statement copied {bench.rows:,} rows under {MEMORY} bytes.")


def _line(bench: Bench, share: int, side: Side, others: list[Side]) -> dict[str, object]:
    return {
        "rows": f"{bench.rows:,}",
        "complex": f"{share} %",
        "way": side.name,
        "seconds": f"{side.seconds:.2f}",
        "us/row": f"{side.seconds / bench.rows * 1e6:.2f}",
        **{f"of {other.name}": f"{side.seconds / other.seconds:.2f}" for other in others},
        "peak MB": f"{side.peak / 1e6:,.0f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--size", help="a team of so many rows only, such as 60M")
    parser.add_argument("--replicas", action="store_true", help="two replicas only; nothing is written to results.md")
    parser.add_argument("--verify", action="store_true", help="verify only; nothing is written to results.md")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="pdi2-bench-"))
    try:
        with embedded.running(directory / "postgres") as server:
            from bench.replicated import on_two_replicas
            from bench.verify import compared

            if options.verify:
                print(compared(directory, 5 * MILLION, options.runs))
                return
            if options.replicas:
                print(on_two_replicas(directory, server, options.runs))
                return
            bench = Bench(directory, server, options.runs)
            if options.size:
                size = round(float(options.size.rstrip("Mm")) * MILLION)
                sections = {"One size": against_others(bench, [(size, 2)])}
            else:
                sizes = [(millions * MILLION, 2) for millions in (1, 5, 12, 20)]
                shares = [(5 * MILLION, share) for share in (0, 10, 30, 100)]
                sections = {
                    "Size of the team": against_others(bench, sizes),
                    "Share of complex ids": against_others(bench, shares),
                    "Size of the ranges": vary_ranges(bench, 5 * MILLION),
                    "Half the memory": halve_memory(bench, 12 * MILLION),
                    "Two replicas": on_two_replicas(directory, server, options.runs),
                    "Verify": compared(directory, 5 * MILLION, options.runs),
                }
            bench.root.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    memory = psutil.virtual_memory().total / 2**30
    machine = f"{platform.machine()}, {psutil.cpu_count()} cores, {memory:.0f} GB, {platform.system()}"
    text = f"""# What `make bench` measured

{datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {machine}; chDB {version("chdb-core")}. Medians of {options.runs} runs, the
sides in turn, merges on, the source in {PARTS} parts that overlap, {MEMORY / 1e6:.0f} MB for a statement of the copy.
Peaks are ClickHouse's figures of the statements at work, looked at every 50 ms, and of the set of hashes beside them.
"""
    for title, table in sections.items():
        text += f"\n## {title}\n\n{table}\n"
    (Path(__file__).parent / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
