"""Measures the comparison of a team that agrees, against the previous release's statements and one plain pass per side.

The statements of the previous release (commit d0aa518) are in bench/previous. They run one after the other, as in its
verify. Postgres and ClickHouse run in separate processes, and hold the same ids.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from clickhouse_connect.driver.client import Client
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.slices import Slice, aggregated_at_once, cut
from pdi2.core.verify.verifying import verify_team

from bench.large import COMPLEX_PERCENT, SETTINGS, connect, fill_postgres
from bench.statements import PLAIN, TEAM, markdown, seed
from demo import postgres as embedded
from demo.schema import create_clickhouse, create_postgres

PREVIOUS = Path(__file__).parent / "previous"
BUCKETS = (1 << 13) - 1
ONE_PASS = {
    "one plain pass over Postgres": "SELECT count(*), sum(mapping.id), max(person.uuid::text) "
    "FROM posthog_persondistinctid AS mapping JOIN posthog_person AS person ON person.id = mapping.person_id "
    f"WHERE mapping.team_id = {TEAM}",
    "one plain pass over ClickHouse": "SELECT count(), any(person) FROM (SELECT argMax(person_id, version) AS person "
    f"FROM person_distinct_id2 WHERE team_id = {TEAM} GROUP BY distinct_id)",
}


def previous(connection: psycopg.Connection[Any], warehouse: Warehouse, client: Client, rows: int) -> None:
    team = {"team_ids": [TEAM], "mask": BUCKETS}
    for name in ("mark", "truth_digest"):
        connection.execute((PREVIOUS / f"{name}.sql").read_text().encode(), team).fetchall()
    ranges = cut(warehouse, Slice(TEAM, b"", None), rows, aggregated_at_once(warehouse.max_memory_usage))
    settings = {"max_threads": 2, "max_memory_usage": warehouse.max_memory_usage}
    for name in ("digest_new", "contradictions", "old_differs"):
        text = (PREVIOUS / f"{name}.sql").read_text()
        for one in ranges:
            client.query(text, parameters={**one.parameters, "mask": BUCKETS}, settings=settings)


def compared(directory: Path, rows: int, runs: int) -> str:
    from demo import clickhouse_server

    with (
        embedded.running(directory / "verify-postgres") as postgres,
        clickhouse_server.running(directory / "verify-clickhouse") as server,
    ):
        postgres.create_database("posthog")
        with postgres.connect("posthog") as connection, connect(server.address) as client:
            create_postgres(connection)
            create_clickhouse(client)
            seeded = seed(client, rows, COMPLEX_PERCENT)
            client.command(PLAIN + " AND _sign = 1 LIMIT 1 BY distinct_id", parameters={"team_id": TEAM})
            fill_postgres(client, postgres)
            ledger = Ledger(connection, "bench", "bench")
            ledger.create()
            ledger.plan({TEAM: seeded})
            return _turns(connection, client, ledger, server.address, seeded, runs)


def _turns(
    connection: psycopg.Connection[Any], client: Client, ledger: Ledger, address: dict[str, Any], rows: int, runs: int
) -> str:
    warehouse = Warehouse(lambda: connect(address), "verify", SETTINGS.max_memory_usage)
    postgres_pass, clickhouse_pass = ONE_PASS
    found = []
    sides: dict[str, Callable[[], object]] = {
        "the previous release's statements": lambda: previous(connection, warehouse, client, rows),
        "this verify": lambda: found.append(verify_team(ledger, warehouse, TEAM, SETTINGS)),
        postgres_pass: lambda: connection.execute(ONE_PASS[postgres_pass].encode()).fetchall(),
        clickhouse_pass: lambda: client.query(ONE_PASS[clickhouse_pass], settings={"max_threads": 2}),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    with warehouse:
        for _ in range(runs):
            for name, run in sides.items():
                began = time.monotonic()
                run()
                taken[name].append(time.monotonic() - began)
                print(f"  {rows:>12,} rows  {name:<34} {taken[name][-1]:7.2f} s", flush=True)
        with warehouse.measured() as cost:
            found.append(verify_team(ledger, warehouse, TEAM, SETTINGS))
    if any(found):
        raise SystemExit(f"verify found {found} in what Postgres was filled from")
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    first = next(iter(medians.values()))
    lines = [
        {
            "rows": f"{rows:,}",
            "way": name,
            "seconds": f"{seconds:.2f}",
            "us/row": f"{seconds / rows * 1e6:.2f}",
            "of the previous release's": f"{seconds / first:.2f}",
        }
        for name, seconds in medians.items()
    ]
    return f"{markdown(lines)}\n\nPeak memory of a statement of this verify: {(cost.peak_memory or 0) / 1e6:,.0f} MB."
