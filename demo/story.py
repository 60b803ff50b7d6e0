"""`make demo`: a whole migration under a live application, from seeded tables to a switched reader, step by step."""

import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from clickhouse_connect.driver.client import Client
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from demo import airflow, cluster, dag_run, traffic
from demo import postgres as embedded
from demo.alone import anew
from demo.schema import create_postgres
from demo.seed import Seeded, seed

CONF = {"settle_seconds": 2, "in_flight_seconds": 1, "read_cache_seconds": 2}
TRAFFIC: dict[str, Any] = {"rate": 10, "writers": 1, "cache_seconds": 0.5, "flush_seconds": 0.3}
"""A change reaches both tables within a second, and each process follows a switch within half a second, so the short
times in CONF are enough. A real installation uses the defaults."""

POLL_SECONDS = 0.2
console = Console(highlight=False, soft_wrap=True)

STEPS = {
    "dual_writes_enabled": "The application writes both tables",
    "dual_writes_proven": "Its writes are seen in both tables",
    "planned": "The list of teams is frozen",
    "certified": "Every team is copied, and equals Postgres id by id",
    "reads_switched": "Reads are on the new table",
    "old_writes_stopped": "Writes to the old table have stopped",
    "report": "The report is written",
}

OPENING = """A whole migration on this machine: Postgres, ClickHouse's engine and Airflow are real, and an application
goes on writing and reading. It takes about a minute."""

NEXT = """
What next:
  make up                  the same in Airflow's own UI, with a page to watch and to act
  make demo ROWS=5000000   a larger one
  make soak                ten minutes of migrations and rollbacks while things break
  README.md                how to install it, and to begin with a dry run
"""


@dataclass
class Clock:
    """Says what was done, how long it took and when."""

    began: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)

    def tell(self, done: str) -> None:
        now = time.monotonic()
        console.print(f"{now - self.began:4.0f} s  [green]✓[/] {done} [dim]({now - self.last:.1f} s)[/]")
        self.last = now


def run(rows: int, teams: int, seed: int, directory: Path, replicas: int) -> int:
    """Returns 0 if everything is as it should be at the end, 1 if not."""
    clock = Clock()
    console.print(OPENING)
    with (
        anew(directory),
        embedded.running(directory / "postgres") as server,
        cluster.servers(directory / "clickhouse", replicas) as servers,
    ):
        server.create_database("posthog")
        environment = airflow.environment(directory, server, servers[0])
        clock.tell(f"Postgres and {cluster.told(servers)} are running")
        log = directory / "airflow.log"
        with (
            dag_run.loading(environment, log) as airflow_process,
            server.connect("posthog") as postgres,
            servers[0].connect() as clickhouse,
        ):
            seeded = _prepare(postgres, clickhouse, rows, teams, seed, clock)
            with traffic.running(server.uri("posthog"), servers[-1].port, servers[-1].password, **TRAFFIC) as live:
                clock.tell(f"The application is live: {TRAFFIC['rate']} changes per second, every answer checked")
                process = airflow_process.start(airflow.FILL, CONF)
                clock.tell(f"Airflow runs the DAG {airflow.FILL}, its log is {log}")
                code = _watch(process, postgres, clock)
                summary = live.end()
            clock.tell("The application has stopped, and everything it wrote has arrived")
            disagreeing = len(cluster.disagreeing(servers, postgres, seeded.team_ids))
            wrong = _report(postgres, disagreeing, seeded, summary, time.monotonic() - clock.began)
    if code:
        wrong.append(f"Airflow ended with exit code {code}; {log} says why")
    for problem in wrong:
        console.print(f"[red]NOT RIGHT: {problem}")
    if not wrong:
        console.print(NEXT, end="")
    return 1 if wrong else 0


def _prepare(
    postgres: psycopg.Connection, clickhouse: Client, rows: int, teams: int, number: int, clock: Clock
) -> Seeded:
    create_postgres(postgres)
    with console.status(f"Seeding about {rows:,} rows of {teams} teams into ClickHouse and Postgres"):
        seeded = seed(postgres, clickhouse, rows=rows, teams=teams, seed=number)
    clock.tell(f"Seeded {seeded.old_rows:,} rows of {len(seeded.team_ids)} teams; the largest has half of them")
    return seeded


def _watch(process: subprocess.Popen[str], postgres: psycopg.Connection, clock: Clock) -> int:
    """Shows each step as the ledger records it, and the teams' progress; returns the run's exit code."""
    columns = TextColumn("       {task.description}"), BarColumn(), TaskProgressColumn()
    told = 0
    with Progress(*columns, console=console, transient=True) as bar:
        progress = bar.add_task("preflight", total=None)
        while True:
            code = process.poll()
            if _exists(postgres):
                events = _rows(postgres, "SELECT id, what FROM pdi2_migration.event WHERE id > %s ORDER BY id", told)
                for told, what in events:  # noqa: B007
                    if what in STEPS:
                        clock.tell(STEPS[what])
                [(teams, verified)] = _rows(postgres, _PROGRESS)
                if teams:
                    bar.update(progress, description=f"{verified} of {teams} teams", total=teams, completed=verified)
            if code is not None:
                return code
            time.sleep(POLL_SECONDS)


_PROGRESS = "SELECT count(*), count(*) FILTER (WHERE status = 'verified') FROM pdi2_migration.team"

_TOLD = """
SELECT DISTINCT ON (what) what, detail
FROM pdi2_migration.event
WHERE what IN ('report', 'read_times', 'certificate_written')
ORDER BY what, id DESC
"""


def _report(
    postgres: psycopg.Connection, disagreeing: int, seeded: Seeded, live: dict[str, Any], seconds: float
) -> list[str]:
    """Prints what was done, and returns what is not right."""
    told = dict(_rows(postgres, _TOLD)) if _exists(postgres) else {}
    if "report" not in told:
        return ["the run left no report"]
    report, findings = told["report"], told["report"]["findings"]

    table = Table(title="The migration", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    table.add_row("Teams verified", f"{report['verified']:,} of {report['teams']:,}")
    table.add_row("Rows in the old table", f"{report['rows_source']:,}")
    table.add_row("Rows copied", f"{report['rows_copied']:,} in {report['slices']:,} slices")
    for kind, count in findings.items():
        repaired, remaining = count["repaired"], count["remaining"]
        found = f"{repaired + remaining:,} ({repaired:,} repaired, {remaining:,} remaining)"
        table.add_row(f"Differences found: {kind}", found)
    table.add_row("Ids the old table's reader gets wrong", f"about {report['old_differs']:,}")
    table.add_row("Ids the new table's reader gets wrong", f"{disagreeing:,}")
    table.add_row("Changes made meanwhile by the application", f"{live['writes']:,}")
    table.add_row("Answers it read meanwhile", f"{live['reads']:,} ({live['wrong']:,} wrong)")
    if read := told.get("read_times"):
        old, new, team_id = read["read_old"], read["read_new"], read["team_id"]
        table.add_row(f"Reading team {team_id}, old table", f"{old * 1000:,.0f} ms")
        table.add_row(f"Reading team {team_id}, new table", f"{new * 1000:,.0f} ms ({old / new:.1f} times as fast)")
    table.add_row("ClickHouse's time for the copy", f"{report['copy_seconds']:.1f} s")
    peak = report["peak_memory"]
    table.add_row("Peak memory of the copy", f"{peak / 1e6:,.0f} MB" if peak else "not measured: too quick")
    table.add_row("Time in all", f"{seconds:.0f} s")
    console.print(table)
    if written := told.get("certificate_written"):
        [page] = [name for name in written["files"] if name.endswith(".html")]
        console.print(f"The certificate, team by team: {written['place'].removeprefix('file://')}/{page}")

    [(status, progress)] = _rows(postgres, "SELECT status, progress FROM posthog_asyncmigration")
    settings = dict(_rows(postgres, "SELECT key, raw_value FROM posthog_instancesetting"))
    wrong = []
    if report["verified"] != len(seeded.team_ids):
        wrong.append(f"{report['verified']} of {len(seeded.team_ids)} teams are verified")
    if disagreeing:
        wrong.append(f"{disagreeing:,} ids of the new table disagree with Postgres")
    if live["wrong"] or live["undelivered"] or not live["sound"]:
        wrong.append(f"the live application: {json.dumps(live)}")
    if any(count["remaining"] for count in findings.values()):
        wrong.append("differences from Postgres remain")
    if (status, progress) != (2, 100) or set(settings.values()) != {'"new"'}:
        wrong.append(f"the switch: status {status}, progress {progress}, settings {json.dumps(settings)}")
    if not wrong:
        console.print("[green]Every id of every team reads as Postgres says; reads and writes are on the new table.[/]")
    return wrong


def _exists(postgres: psycopg.Connection) -> bool:
    return bool(_rows(postgres, "SELECT to_regclass('pdi2_migration.team') IS NOT NULL")[0][0])


def _rows(postgres: psycopg.Connection, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return postgres.execute(query.encode(), parameters or None).fetchall()
