"""`make demo`: a whole migration, from seeded tables to a switched reader, told while it happens."""

import json
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import clickhouse_connect
import psycopg
from clickhouse_connect.driver.client import Client
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from demo import airflow, cluster
from demo import postgres as embedded
from demo.reader import seconds_to_count_persons, team_in, truth_of
from demo.schema import Table, create_postgres
from demo.seed import Seeded, seed

CONF = {"settle_seconds": 4, "read_cache_seconds": 2}
"""Short, for nobody else reads or writes this demo's tables."""

POLL_SECONDS = 0.3
READS = 5
console = Console(highlight=False)

STEPS = {
    "dual_writes_enabled": "Dual writes are on",
    "dual_writes_proven": "Dual writes are proven",
    "planned": "The list of teams is frozen",
    "certified": "Every team is certified",
    "reads_switched": "Reads are on the new table",
    "old_writes_stopped": "Old writes have stopped",
}


def tell(rows: int, teams: int, seed: int, directory: Path, replicas: int) -> int:
    """Returns 0 if everything is as it should be at the end, 1 if not."""
    started = time.monotonic()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with (
        embedded.running(directory / "postgres") as server,
        cluster.servers(directory / "clickhouse", replicas) as servers,
    ):
        engine: dict[str, Any] = {"host": "127.0.0.1", "port": servers[0].port}
        server.create_database("posthog")
        environment = airflow.environment(
            directory / "airflow",
            server.airflow_connection("posthog"),
            {"conn_type": "clickhouse", "login": "default", **engine},
        )
        log = directory / "airflow.log"
        with log.open("wb") as output, server.connect("posthog") as postgres:
            metadata = subprocess.Popen(["airflow", "db", "migrate"], env=environment, stdout=output, stderr=output)
            with clickhouse_connect.get_client(**engine) as clickhouse:
                seeded = _prepare(postgres, clickhouse, rows, teams, seed)
            if metadata.wait():
                console.print(f"[red]Airflow's metadata could not be set up; see {log}")
                return 1
            console.print(f"Airflow runs the DAG fill_person_distinct_id2; its log is {log}")
            command = ["airflow", "dags", "test", "fill_person_distinct_id2", "--conf", json.dumps(CONF)]
            code = _watch(subprocess.Popen(command, env=environment, stdout=output, stderr=output), postgres)
            with clickhouse_connect.get_client(**engine) as clickhouse:
                wrong = _report(postgres, clickhouse, seeded, time.monotonic() - started)
            for other in servers[1:]:
                with clickhouse_connect.get_client(host="127.0.0.1", port=other.port) as clickhouse:
                    clickhouse.command(f"SYSTEM SYNC REPLICA {Table.NEW}")
                    if ids := sum(_disagreements(postgres, clickhouse, team_id) for team_id in seeded.team_ids):
                        wrong.append(f"{ids:,} ids of the new table disagree with Postgres on the other replica")
    if code:
        wrong.append(f"Airflow ended with exit code {code}; see {log}")
    for problem in wrong:
        console.print(f"[red]NOT RIGHT: {problem}")
    return 1 if wrong else 0


def _prepare(postgres: psycopg.Connection, clickhouse: Client, rows: int, teams: int, number: int) -> Seeded:
    create_postgres(postgres)
    with console.status(f"Seeding about {rows:,} rows of {teams} teams into ClickHouse and Postgres"):
        began = time.monotonic()
        seeded = seed(postgres, clickhouse, rows=rows, teams=teams, seed=number)
    console.print(
        f"Seeded {seeded.old_rows:,} rows of {len(seeded.team_ids)} teams in {time.monotonic() - began:.0f} s; "
        f"the largest team has half of them"
    )
    return seeded


def _watch(run: subprocess.Popen[bytes], postgres: psycopg.Connection) -> int:
    """Shows each step as the ledger records it, and the teams' progress; returns the run's exit code."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(), console=console, transient=True,
    )  # fmt: skip
    told = 0
    with bar:
        progress = bar.add_task("Airflow is starting", total=None, speed="")
        while (code := run.poll()) is None:
            time.sleep(POLL_SECONDS)
            if not _exists(postgres):
                continue
            events = _rows(postgres, "SELECT id, what FROM pdi2_migration.event WHERE id > %s ORDER BY id", told)
            for told, what in events:  # noqa: B007
                if what in STEPS:
                    console.print(f"  [green]✓[/] {STEPS[what]}")
            [facts] = _rows(postgres, _PROGRESS)
            bar.update(progress, **_shown(*facts))
    return code


def _shown(total: int, verified: int, rows: int, done: int, seconds: float, active: int | None) -> dict[str, Any]:
    if not total:
        return {}
    doing = f"team {active}" if active else "all teams"
    speed = f"{done / seconds:,.0f} rows/s" if seconds else ""
    return {"description": f"{doing} · {verified} of {total} teams", "total": rows, "completed": done, "speed": speed}


_PROGRESS = """
SELECT count(*),
       count(*) FILTER (WHERE status = 'verified'),
       coalesce(sum(rows_source), 0)::bigint,
       coalesce(sum(rows_source) FILTER (WHERE status IN ('copied', 'verified')), 0)::bigint,
       coalesce(sum(copy_seconds), 0),
       (SELECT team_id FROM pdi2_migration.team WHERE status IN ('copying', 'copied')
        ORDER BY rows_source DESC, team_id LIMIT 1)
FROM pdi2_migration.team
"""

_LEDGER = """
SELECT count(*), count(*) FILTER (WHERE status = 'verified'), sum(rows_source)::bigint, sum(rows_copied)::bigint,
       sum(slices_done)::bigint, sum(copy_seconds), max(peak_memory), sum(old_differs)::bigint
FROM pdi2_migration.team
"""

_FINDINGS = """
SELECT kind, count(*), count(*) FILTER (WHERE repaired), count(*) FILTER (WHERE NOT repaired)
FROM pdi2_migration.finding
GROUP BY kind
ORDER BY kind
"""


def _report(postgres: psycopg.Connection, clickhouse: Client, seeded: Seeded, seconds: float) -> list[str]:
    """Prints what was done, looks at every id of every team once more, and returns what is not right."""
    if not _exists(postgres):
        return ["the run ended before it wrote anything"]
    [(teams, verified, source, copied, slices, copy_seconds, peak, old_differs)] = _rows(postgres, _LEDGER)
    findings = _rows(postgres, _FINDINGS)
    disagreeing = sum(_disagreements(postgres, clickhouse, team_id) for team_id in seeded.team_ids)
    largest = seeded.team_ids[0]
    old, new = (_median_read(clickhouse, table, largest) for table in (Table.OLD, Table.NEW))

    table = RichTable(title="The migration", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    table.add_row("Teams verified", f"{verified:,} of {teams:,}")
    table.add_row("Rows in the old table", f"{source or 0:,}")
    table.add_row("Rows copied", f"{copied or 0:,} in {slices or 0:,} slices")
    for kind, found, repaired, remaining in findings:
        table.add_row(f"Differences found: {kind}", f"{found:,} ({repaired:,} repaired, {remaining:,} remaining)")
    table.add_row("Ids the old table's reader gets wrong", f"{old_differs or 0:,}")
    table.add_row("Ids the new table's reader gets wrong", f"{disagreeing:,}")
    table.add_row(f"Reading team {largest}, old table", f"{old * 1000:,.0f} ms")
    table.add_row(f"Reading team {largest}, new table", f"{new * 1000:,.0f} ms ({old / new:.1f} times as fast)")
    table.add_row("Copying", f"{copy_seconds or 0:.1f} s")
    table.add_row("Peak memory of the copy", f"{peak / 1e6:,.0f} MB" if peak else "too quick to be seen")
    table.add_row("Time in all", f"{seconds:.0f} s")
    console.print(table)

    [(status, progress)] = _rows(postgres, "SELECT status, progress FROM posthog_asyncmigration")
    settings = dict(_rows(postgres, "SELECT key, raw_value FROM posthog_instancesetting"))
    wrong = []
    if verified != len(seeded.team_ids):
        wrong.append(f"{verified} of {len(seeded.team_ids)} teams are verified")
    if disagreeing:
        wrong.append(f"{disagreeing:,} ids of the new table disagree with Postgres")
    if any(remaining for *_, remaining in findings):
        wrong.append("differences from Postgres remain")
    if (status, progress) != (2, 100) or set(settings.values()) != {'"new"'}:
        wrong.append(f"the switch: status {status}, progress {progress}, settings {settings}")
    if not wrong:
        console.print("[green]Every id of every team reads as Postgres says; reads and writes are on the new table.")
    return wrong


def _disagreements(postgres: psycopg.Connection, clickhouse: Client, team_id: int) -> int:
    return len({*team_in(clickhouse, Table.NEW, team_id).items()} ^ {*truth_of(postgres, team_id).items()})


def _median_read(clickhouse: Client, table: Table, team_id: int) -> float:
    return statistics.median(seconds_to_count_persons(clickhouse, table, team_id) for _ in range(READS))


def _exists(postgres: psycopg.Connection) -> bool:
    return bool(_rows(postgres, "SELECT to_regclass('pdi2_migration.team') IS NOT NULL")[0][0])


def _rows(postgres: psycopg.Connection, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return postgres.execute(query.encode(), parameters or None).fetchall()
