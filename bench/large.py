"""`make bench-large`: one large team, copied and then verified against a Postgres that holds the same ids.

Time a row and memory must not depend on the team's size. The engines are processes of their own; memory of Python is
the greatest resident size of a process that does nothing else. Postgres is filled from the copy.
"""

import argparse
import multiprocessing
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from pdi2.core.copy import copying
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.measuring import Cost
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.verify import verifying

from bench.statements import TEAM, markdown, seed
from demo import postgres as embedded
from demo.schema import create_clickhouse, create_postgres

COMPLEX_PERCENT = 2
MILLION = 1_000_000
SETTINGS = Settings(settle_seconds=0, read_cache_seconds=0)
COPIES = {
    "posthog_person (id, uuid, team_id)": "person_id, team_id",
    "posthog_persondistinctid (person_id, distinct_id, team_id, version)": "distinct_id, team_id, 0",
}
IN_ORDER = """
SELECT rowNumberInAllBlocks() + 1, {} FROM (SELECT * FROM person_distinct_id2 ORDER BY team_id, distinct_id)
"""
PROCESSES = multiprocessing.get_context("spawn")


def connect(address: dict[str, Any]) -> Client:
    return clickhouse_connect.get_client(**address)


def fill_postgres(client: Client, uri: embedded.Postgres) -> None:
    """Fills Postgres in key order, so that every index grows at its end."""
    with uri.connect("posthog") as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(f"INSERT INTO posthog_team (id, name) VALUES ({TEAM}, 'large')".encode())
        connection.execute("DROP INDEX posthog_person_uuid")
        for table, columns in COPIES.items():
            with (
                client.raw_stream(IN_ORDER.format(columns), fmt="TabSeparated") as source,
                connection.cursor().copy(f"COPY {table} FROM STDIN".encode()) as copy,
            ):
                while block := source.read(1 << 20):
                    copy.write(block)
        connection.execute("ANALYZE posthog_person, posthog_persondistinctid")


def step(name: str, address: dict[str, Any], uri: str, rows: int, answer: Any) -> None:
    """One step, which runs in its own process."""
    import psycopg

    with (
        psycopg.connect(uri, autocommit=True) as connection,
        Warehouse(lambda: connect(address), name, SETTINGS.max_memory_usage) as warehouse,
    ):
        ledger = Ledger(connection, "bench", "bench")
        with warehouse.measured() as cost:
            if name == "copy":
                ledger.create()
                ledger.plan({TEAM: rows})
                copying.copy_team(ledger, warehouse, TEAM)
            else:
                found = verifying.verify_team(ledger, warehouse, TEAM, SETTINGS)
                if found:
                    raise SystemExit(f"verify found {found} in what Postgres was filled from")
        [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        answer.put((cost, int(peak) * 1024))


def measured(name: str, address: dict[str, Any], uri: str, rows: int) -> tuple[Cost, int]:
    answer = PROCESSES.SimpleQueue()
    process = PROCESSES.Process(target=step, args=(name, address, uri, rows, answer))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{name} failed; nothing was measured.")
    return answer.get()


def migrate(rows: int, place: Path) -> list[dict[str, str]]:
    from demo import clickhouse_server  # keeps the engine's 250 MB out of the steps' processes

    with embedded.running(place / "postgres") as postgres, clickhouse_server.running(place / "clickhouse") as server:
        postgres.create_database("posthog")
        with postgres.connect("posthog") as connection, connect(server.address) as client:
            create_postgres(connection)
            create_clickhouse(client)
            seeded = seed(client, rows, COMPLEX_PERCENT)
            lines = [_line("copy", seeded, *measured("copy", server.address, postgres.uri("posthog"), seeded))]
            began = time.monotonic()
            fill_postgres(client, postgres)
            print(f"{seeded:,} rows: Postgres was filled in {time.monotonic() - began:.0f} s", flush=True)
            lines.append(_line("verify", seeded, *measured("verify", server.address, postgres.uri("posthog"), seeded)))
    return lines


def _line(name: str, rows: int, cost: Cost, python: int) -> dict[str, str]:
    return {
        "step": name,
        "rows": f"{rows:,}",
        "seconds": f"{cost.seconds:.1f}",
        "us/row": f"{cost.seconds / rows * 1e6:.2f}",
        "statements' peak, MB": f"{(cost.peak_memory or 0) / 1e6:.0f}",
        "Python, MB": f"{python / 1e6:.0f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.large", description=__doc__)
    parser.add_argument("--millions", type=float, nargs="+", default=[5, 60], help="of rows in the team")
    lines = []
    for millions in parser.parse_args().millions:
        with tempfile.TemporaryDirectory(prefix="pdi2-large-", ignore_cleanup_errors=True) as place:
            lines += migrate(round(millions * MILLION), Path(place))
        print(markdown(lines), flush=True)


if __name__ == "__main__":
    main()
