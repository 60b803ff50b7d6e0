"""People mark and clear tasks as in Airflow's UI, through the same API, on a whole Airflow. The gate is not fooled."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import FILL, LiveSystem
from stories import accept, refuse, until

from demo import up
from demo.alone import free_port
from demo.seed import Seeded, seed

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

CONF = {"settle_seconds": 0, "read_cache_seconds": 0}


class Airflow:
    """Airflow's API, as the UI uses it."""

    def __init__(self, address: str, password: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=120)
        login = self.http.post("/auth/token", json={"username": "admin", "password": password}).raise_for_status()
        self.http.headers["Authorization"] = f"Bearer {login.json()['access_token']}"

    def call(self, method: str, path: str, **body: Any) -> Any:
        response = self.http.request(method, f"/api/v2/dags/{FILL}{path}", json=body or None)
        assert response.is_success, response.text
        return response.json()

    def trigger(self) -> str:
        return self.call("POST", "/dagRuns", logical_date=None, conf=CONF)["dag_run_id"]

    def ended(self, run: str) -> str:
        until(lambda: self.state(run) in ("success", "failed"), every=0.5)
        return self.state(run)

    def state(self, run: str) -> str:
        return self.call("GET", f"/dagRuns/{run}")["state"]

    def tasks(self, run: str) -> dict[tuple[str, int], str]:
        found = self.call("GET", f"/dagRuns/{run}/taskInstances?limit=100")["task_instances"]
        return {(one["task_id"], one["map_index"]): one["state"] for one in found}

    def clear(self, run: str, *tasks: str | list[Any]) -> None:
        self.call(
            "POST", "/clearTaskInstances", dry_run=False, dag_run_id=run, task_ids=list(tasks), only_failed=False,
            include_downstream=True,
        )  # fmt: skip

    def mark_success(self, run: str, task: str, map_index: int = -1) -> None:
        index = f"/{map_index}" if map_index >= 0 else ""
        self.call("PATCH", f"/dagRuns/{run}/taskInstances/{task}{index}", new_state="success")


@pytest.fixture
def seeded(live: LiveSystem) -> Seeded:
    return seed(live.postgres, live.clickhouse, rows=6_000, teams=3)


@pytest.fixture
def ui(live: LiveSystem, tmp_path: Path) -> Iterator[Airflow]:
    port = free_port()
    password = secrets.token_urlsafe()
    live.postgres_server.create_database("airflow")
    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path / "airflow")}
    environment |= up.standalone_environment(tmp_path, live.postgres_server, password, port)
    with (tmp_path / "airflow.log").open("wb") as log:
        server = subprocess.Popen(
            ["airflow", "standalone"], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            until(lambda: up.is_healthy(address), every=0.5)
            yield Airflow(address, password)
        finally:
            up.stop(server)
            with live.postgres_server.connect("postgres") as connection:
                connection.execute("DROP DATABASE airflow WITH (FORCE)")


def test_clearing_and_marking_by_hand_never_fools_the_gate(live: LiveSystem, seeded: Seeded, ui: Airflow) -> None:
    refuse(live, f"team_id = {seeded.team_ids[0]} AND version < 0")
    run = ui.trigger()
    assert ui.ended(run) == "failed"
    [broken] = [index for (task, index), state in ui.tasks(run).items() if (task, state) == ("team.copy", "failed")]

    # A copy that failed is marked as a success, and the gate is cleared.
    ui.mark_success(run, "team.copy", broken)
    ui.clear(run, "certify")
    assert ui.ended(run) == "failed"
    assert ui.tasks(run)["certify", -1] == "failed"
    assert live.switches()["reads"] == "old"

    # The gate itself is marked as a success.
    ui.mark_success(run, "certify")
    ui.clear(run, "approve")
    assert ui.ended(run) == "failed"
    assert ui.tasks(run)["switch_reads", -1] == "failed"
    assert live.switches()["reads"] == "old"
    assert live.status() == 3

    # The cause is gone and the one mapped index is cleared: the run does what is missing and switches.
    accept(live)
    ui.clear(run, ["team.copy", broken])
    assert ui.ended(run) == "success"
    assert live.status() == 2
    assert live.switches() == {"reads": "new", "writes": "new"}
    assert live.disagreements() == {}
    assert {team.status for team in live.teams().values()} == {"verified"}
    assert live.ledger().current_run().outcome == "completed"

    # The whole group is cleared although all is done: all is proven again, but nothing is copied or switched again.
    slices = "SELECT count(*), max(finished_at) FROM pdi2_migration.slice"
    before = live.postgres.execute(slices).fetchall()
    ui.clear(run, "team.copy", "team.verify")
    assert ui.ended(run) == "success"
    assert live.postgres.execute(slices).fetchall() == before
    assert live.disagreements() == {}
    assert live.value("SELECT count(*) FROM pdi2_migration.event WHERE what = 'reads_switched'") == 1
    assert {team.status for team in live.teams().values()} == {"verified"}
    assert live.status() == 2


def test_a_run_is_checked_by_preflight_and_can_be_cleared_as_a_whole(
    live: LiveSystem, seeded: Seeded, ui: Airflow
) -> None:
    live.clickhouse.command("ALTER TABLE person_distinct_id2 MODIFY TTL _timestamp + INTERVAL 1 DAY")
    run = ui.trigger()
    assert ui.ended(run) == "failed"
    ui.mark_success(run, "preflight")
    assert ui.ended(run) == "failed"
    assert ui.tasks(run)["enable_dual_writes", -1] == "failed"
    assert live.switches()["writes"] == "old"

    # The cause is gone, and the run begins anew. All teams but one are verified.
    live.clickhouse.command("ALTER TABLE person_distinct_id2 REMOVE TTL")
    refuse(live, f"team_id = {seeded.team_ids[0]} AND version < 0")
    ui.clear(run, "preflight")
    assert ui.ended(run) == "failed"
    planned = [task for task in ui.tasks(run) if task[0] == "team.copy"]
    assert len(planned) == 3

    # The run begins anew, and its plan has fewer teams than mapped tasks.
    accept(live)
    ui.clear(run, "preflight")
    assert ui.ended(run) == "success", ui.tasks(run)
    assert live.switches() == {"reads": "new", "writes": "new"}
    assert live.disagreements() == {}


def test_two_runs_started_at_once_work_one_after_the_other(live: LiveSystem, seeded: Seeded, ui: Airflow) -> None:
    first, second = ui.trigger(), ui.trigger()

    assert (ui.ended(first), ui.ended(second)) == ("success", "success")
    assert {task for (task, _), state in ui.tasks(second).items() if state != "skipped"} == {"preflight", "end"}
    assert live.status() == 2
    assert live.disagreements() == {}
