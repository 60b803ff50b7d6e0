"""`make bench-scale`: a whole migration through Airflow's own scheduler, for what teams and rows cost. No traffic.

Processor time and memory are those of the operating system, by who used them: Airflow (scheduler, workers, API server,
DAG processor), Postgres (which Airflow's metadata share with the application), ClickHouse.
"""

import argparse
import json
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tabulate import tabulate

from bench.statements import markdown
from demo.airflow import FILL
from demo.screenshots import Up, running

LOOK_EVERY_SECONDS = 1.0
CONF = {"settle_seconds": 0, "read_cache_seconds": 0}


@dataclass
class Usage:
    """Processor seconds, and the greatest memory at any one time in bytes (USS, so that nothing is counted twice)."""

    seconds: dict[psutil.Process, tuple[str, float]] = field(default_factory=dict)
    memory: Counter[str] = field(default_factory=Counter)

    def look(self, up: Up) -> None:
        memory: Counter[str] = Counter()
        for process in _below(up):
            try:
                who = _who(process)
                times = process.cpu_times()
                self.seconds[process] = (who, times.user + times.system)
                used = process.memory_full_info().uss
            except psutil.Error:  # it has just ended
                continue
            memory[who] += used
        self.memory |= memory

    def by_owner(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for who, seconds in self.seconds.values():
            total[who] += seconds
        return total


def _below(up: Up) -> list[psutil.Process]:
    """All processes that `make up` has started. Postgres's processes are looked up apart: they are not its children."""
    postmaster = int((up.directory / "postgres" / "postmaster.pid").read_text().split()[0])
    roots = [psutil.Process(postmaster), *psutil.Process(up.pid).children()]
    return [process for root in roots for process in (root, *root.children(recursive=True))]


def _who(process: psutil.Process) -> str:
    if process.name() == "postgres":
        return "Postgres"
    return "ClickHouse" if any("clickhouse_server" in argument for argument in process.cmdline()) else "Airflow"


class Api:
    """Airflow's API, as the user admin."""

    def __init__(self, up: Up) -> None:
        self.address = up.address
        user = {"username": "admin", "password": up.passwords["admin"]}
        self.token = self.call("/auth/token", user)["access_token"]

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if path != "/auth/token":
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)


def migrate(teams: int, rows: int, place: Path) -> dict[str, object]:
    began = time.monotonic()
    with running(place, "--rate", "0", "--zipf", rows=rows, teams=teams) as up:
        seeded = time.monotonic() - began
        api = Api(up)
        usage, before = Usage(), Usage()
        before.look(up)
        began = time.monotonic()
        run = api.call(f"/api/v2/dags/{FILL}/dagRuns", {"logical_date": None, "conf": CONF})["dag_run_id"]
        path = f"/api/v2/dags/{FILL}/dagRuns/{run}"
        while (state := api.call(path)["state"]) in ("queued", "running"):
            usage.look(up)
            time.sleep(LOOK_EVERY_SECONDS)
        seconds = time.monotonic() - began
        usage.look(up)
        with up.postgres.connect("posthog") as connection:
            facts = connection.execute(
                "SELECT detail FROM pdi2_migration.event WHERE what = 'report' ORDER BY id DESC"
            ).fetchone()
        with up.postgres.connect("airflow") as connection:
            steps = connection.execute(
                "SELECT task_id, count(*), extract(epoch FROM max(end_date) - min(start_date)), "
                "sum(extract(epoch FROM end_date - start_date)) "
                "FROM task_instance WHERE run_id = %s AND start_date IS NOT NULL "
                "GROUP BY task_id ORDER BY min(start_date)",
                [run],
            ).fetchall()
    if state != "success" or not facts:
        raise SystemExit(f"The run ended as {state}; nothing was measured.")
    used = usage.by_owner()
    used.subtract(before.by_owner())
    print(tabulate(steps, ["task", "instances", "from first to last, s", "sum, s"], floatfmt=".1f"))
    print(json.dumps(facts[0], indent=1))
    busy = sum(used.values())
    return {
        "teams": f"{teams:,}",
        "rows": f"{facts[0]['rows_source']:,}",
        "seconds": f"{seconds:.0f}",
        "outside the databases": f"{seconds * used['Airflow'] / busy:.0f} s",
        **{f"{who}, CPU s": f"{used[who]:.0f}" for who in ("Airflow", "Postgres", "ClickHouse")},
        "Airflow, MB": f"{usage.memory['Airflow'] / 1e6:,.0f}",
        "ClickHouse, MB": f"{usage.memory['ClickHouse'] / 1e6:,.0f}",
        "statements' peak, MB": f"{facts[0]['peak_memory'] / 1e6:,.0f}",
        "seeding, s": f"{seeded:.0f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--teams", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--rows", type=int, default=5_000_000)
    options = parser.parse_args()
    lines = []
    for teams in options.teams:
        with tempfile.TemporaryDirectory(prefix="pdi2-scale-", ignore_cleanup_errors=True) as place:
            lines.append(migrate(teams, options.rows, Path(place)))
        print(markdown(lines), flush=True)


if __name__ == "__main__":
    main()
