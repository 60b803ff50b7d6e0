"""What people do to a run by hand, and what fails early: nothing irreversible happens, and no failure is green."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.sdk.definitions.dag import _run_task
from airflow.sdk.exceptions import ParamValidationError
from airflow.utils.session import create_session
from conftest import FILL, System, airflow_api, dags, run_dag
from pdi2.core.state.settings import Settings
from pdi2.core.switch.rollback import roll_back
from pdi2.edge import connections, tasks
from sqlalchemy.orm import Session
from stories import TEAM, accept, dump, earlier_run, migrate_together, refuse, two_ids_each, until, when_recorded

from demo.seed import Seeded, seed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("airflow_metadata")]

Act = Callable[["Hands"], None]
LOOK_SECONDS = 0.5
"""Each look takes some 100 ms of the processor, which the run needs too."""


class Hands:
    """Somebody in Airflow's UI, through the API that it uses, while a run goes on in this process."""

    def __init__(self) -> None:
        self.client = airflow_api()
        self.before = self._runs()
        self.found: str | None = None

    def _get(self, path: str) -> Any:
        response = self.client.get(f"/api/v2/dags/{FILL}{path}")
        return response.json() if response.is_success else {"dag_runs": []}

    def _runs(self) -> set[str]:
        """The newest ones: Airflow gives no more than 100, and this process may have made more."""
        return {run["dag_run_id"] for run in self._get("/dagRuns?limit=100&order_by=-id")["dag_runs"]}

    @property
    def run(self) -> str | None:
        """The run that began since these hands were made."""
        self.found = self.found or next(iter(self._runs() - self.before), None)
        return self.found

    def states(self) -> dict[str, set[str]]:
        if not (run := self.run):
            return {}
        found: dict[str, set[str]] = {}
        for task in self._get(f"/dagRuns/{run}/taskInstances?limit=100")["task_instances"]:
            found.setdefault(task["task_id"], set()).add(str(task["state"]))
        return found

    def wait_for(self, task: str, *states: str) -> None:
        """Waits until every instance of the task is in one of these states."""
        until(lambda: (seen := self.states().get(task)) and seen <= set(states), every=LOOK_SECONDS)

    def mark_run(self, state: str) -> None:
        self._patch("", {"state": state})

    def mark(self, task: str) -> None:
        self._patch(f"/taskInstances/{task}", {"new_state": "success"})

    def approve(self) -> None:
        self._patch("/taskInstances/approve/-1/hitlDetails", {"chosen_options": ["Approve"], "params_input": {}})

    def _patch(self, path: str, body: dict[str, Any]) -> None:
        """Tries again while Airflow's SQLite is locked."""
        until(lambda: self.client.patch(f"/api/v2/dags/{FILL}/dagRuns/{self.run}{path}", json=body).is_success)


@contextmanager
def meanwhile(system: System, act: Act) -> Iterator[None]:
    """Somebody acts during a run. If that fails, the run is ended, because otherwise it would wait for ever."""
    failed: list[BaseException] = []

    def work(hands: Hands) -> None:
        try:
            act(hands)
        except BaseException as error:
            failed.append(error)
            system.ledger().record("resumed")
            hands.mark_run("failed")

    thread = threading.Thread(target=work, args=[Hands()])
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert not failed, failed


@pytest.fixture
def seeded(system: System) -> Seeded:
    return seed(system.postgres, system.clickhouse, rows=7_000, teams=3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts off a waiting task for an hour instead of a minute: however late it is marked, it is not at its next try,
    whose end would undo the mark. Where a task has to go on, the story says after how long."""
    monkeypatch.setattr("pdi2.core.cluster.pressure.LOOK_EVERY_SECONDS", 0.01)
    monkeypatch.setattr("pdi2.core.cluster.pressure.WAIT_IN_SLOT_SECONDS", 0)
    monkeypatch.setattr("pdi2.edge.connections.PUT_OFF_SECONDS", 3_600)


def red(run: Any) -> list[str]:
    return sorted(task.task_id for task in run.get_task_instances() if task.state == "failed")


def pause_when(system: System, table: str, condition: str) -> None:
    when_recorded(system, table, condition, "INSERT INTO pdi2_migration.event (actor, what) VALUES ('ann', 'paused')")


@pytest.mark.parametrize("state", [pytest.param("failed", marks=pytest.mark.chaos), "success"])
def test_a_run_that_is_marked_while_copies_are_red_is_red(system: System, seeded: Seeded, state: str) -> None:
    """Airflow skips the remaining tasks, which alone would make the run green. Marking the run does not switch
    reads. `end` is marked too, because Airflow may skip it before the red of the copies has reached it."""
    refuse(system, "version < 0")
    pause_when(system, "team", "NEW.status = 'failed'")

    def mark(hands: Hands) -> None:
        hands.wait_for("end", "upstream_failed")
        assert hands.states()["team.copy"] == {"failed", "up_for_reschedule"}
        hands.mark("end")
        hands.mark_run(state)

    with meanwhile(system, mark):
        run = system.run()

    assert run.state == "failed"
    assert "report" in red(run)
    assert system.switches() == {"reads": "old", "writes": "both"}
    assert system.status() == 3
    assert system.ledger().current_run().outcome == "failed"

    accept(system)
    system.postgres.execute("DROP TRIGGER happen ON pdi2_migration.team")
    system.ledger().record("resumed")
    assert system.run().state == "success"
    assert system.disagreements() == {}


def test_a_run_is_reported_once_every_team_is_done(
    system: System, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A team fails, so what follows the teams cannot be reached any more, while others are still being copied."""
    monkeypatch.setattr("pdi2.edge.connections.PUT_OFF_SECONDS", 2)
    broken = seeded.team_ids[0]
    refuse(system, f"team_id = {broken} AND version < 0")
    pause_when(system, "team", "NEW.status = 'failed'")
    seen: list[Any] = []

    def resume(hands: Hands) -> None:
        hands.wait_for("stop_old_writes", "upstream_failed")
        time.sleep(1)
        seen.append((hands.states()["report"], system.status(), system.ledger().current_run()))
        system.ledger().record("resumed")

    with meanwhile(system, resume):
        run = system.run()

    [(report, status, owner)] = seen
    assert (report, status, owner.ended_at) == ({"None"}, 5, None)
    assert run.state == "failed"
    assert red(run) == ["team.copy"]
    facts = system.ledger().latest("report")
    assert (facts["outcome"], facts["teams"], facts["verified"]) == ("failed", 3, 2)
    assert system.status() == 3


@pytest.mark.parametrize(
    "conf", [pytest.param({"dry_run": True}, marks=pytest.mark.chaos, id="a dry run"), pytest.param({}, id="a run")]
)
def test_a_run_that_is_marked_before_anything_failed_is_red(
    system: System, seeded: Seeded, monkeypatch: pytest.MonkeyPatch, conf: dict[str, Any]
) -> None:
    """Another run is going on, so preflight waits for its next try, and no task is red."""
    monkeypatch.setattr("pdi2.edge.retries.FIRST_DELAY", timedelta(hours=1))
    monkeypatch.setattr("pdi2.edge.retries.LONGEST_DELAY", timedelta(hours=1))
    before = dump(system)

    def mark(hands: Hands) -> None:
        hands.wait_for("preflight", "up_for_retry")
        hands.mark_run("failed")

    with psycopg.connect(system.uri, autocommit=True) as other, meanwhile(system, mark):
        other.execute("SELECT pg_advisory_lock_shared(hashtext('pdi2_migration'), 0)")
        run = system.run(**conf)

    assert run.state == "failed"
    assert red(run) == ["report"]
    assert dump(system) == before


def test_a_run_keeps_the_parameters_that_it_began_with(
    system: System, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker has other `[pdi2] defaults`: Airflow's task_runner parses the DAG there, and takes `params` from it."""
    given = connections.current_settings

    def parsed_there(*schema: Any) -> Settings:
        return replace(given(*schema), stop_old_writes=bool(system.ledger().current_run()))

    for module in (connections, tasks):
        monkeypatch.setattr(module, "current_settings", parsed_there)

    assert system.run().state == "success"
    assert system.switches() == {"reads": "new", "writes": "both"}


def test_a_pause_holds_an_approved_switch(system: System, seeded: Seeded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdi2.edge.connections.PUT_OFF_SECONDS", 2)
    seen: list[dict[str, str]] = []

    def pause_and_approve(hands: Hands) -> None:
        hands.wait_for("approve", "awaiting_input")
        system.ledger().record("paused")
        hands.approve()
        hands.wait_for("switch_reads", "up_for_reschedule")
        seen.append(system.switches())
        system.ledger().record("resumed")

    with meanwhile(system, pause_and_approve):
        run = system.run(require_approval=True)

    assert seen == [{"reads": "old", "writes": "both"}]
    assert run.state == "success"
    assert system.switches() == {"reads": "new", "writes": "new"}
    assert system.value("SELECT count(*) FROM pdi2_migration.event WHERE what = 'task_failed'") == 0


@pytest.mark.parametrize(
    "by", ["the run that switched", pytest.param("a run that does only this", marks=pytest.mark.chaos)]
)
def test_a_pause_holds_the_end_of_old_writes(
    system: System, seeded: Seeded, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr("pdi2.edge.connections.PUT_OFF_SECONDS", 2)
    if by == "the run that switched":
        pause_when(system, "event", "NEW.what = 'reads_switched'")
    else:
        earlier_run(system, stop_old_writes=False)
        system.ledger().record("paused")
    seen: list[dict[str, str]] = []

    def resume(hands: Hands) -> None:
        hands.wait_for("stop_old_writes", "up_for_reschedule")
        seen.append(system.switches())
        system.ledger().record("resumed")

    with meanwhile(system, resume):
        run = system.run()

    assert seen == [{"reads": "new", "writes": "both"}]
    assert run.state == "success"
    assert system.switches() == {"reads": "new", "writes": "new"}


def test_an_approval_that_is_marked_by_hand_is_none(system: System, seeded: Seeded) -> None:
    run = system.run(marked="approve", require_approval=True)

    assert run.state == "failed"
    assert red(run) == ["switch_reads"]
    assert system.switches() == {"reads": "old", "writes": "both"}
    told = "SELECT description FROM posthog_asyncmigrationerror"
    assert system.value(told).startswith("This run requires an approval, and the ledger has none")


def test_a_switch_that_is_marked_by_hand_is_none(system: System, seeded: Seeded) -> None:
    run = system.run(marked="switch_reads")

    assert run.state == "failed"
    assert red(run) == ["stop_old_writes"]
    assert system.switches() == {"reads": "old", "writes": "both"}
    assert system.status() == 3


def test_an_end_of_old_writes_that_is_marked_by_hand_is_none(system: System, seeded: Seeded) -> None:
    run = system.run(marked="stop_old_writes")

    assert run.state == "failed"
    assert red(run) == ["report"]
    assert "somebody marked it" in system.ledger().latest("task_failed")["error"], "the page says it too"
    assert system.switches() == {"reads": "new", "writes": "both"}
    assert system.run().state == "success"
    assert system.switches() == {"reads": "new", "writes": "new"}


def test_teams_may_be_named_as_text_and_whole_numbers_written_as_fractions(system: System, seeded: Seeded) -> None:
    teams = seeded.team_ids[-2:]

    run = system.run(
        team_ids="{}, {}".format(*teams),
        settle_seconds=1.0,
        read_cache_seconds=0.0,
        in_flight_seconds=0.5,
        max_memory_usage=2e8,
    )

    assert run.state == "success"
    assert set(system.teams()) == set(teams)
    assert system.switches() == {"reads": "old", "writes": "both"}


def test_what_is_no_list_of_teams_is_never_a_full_migration(system: System, seeded: Seeded) -> None:
    """Refused before a run exists, as the UI, the API and the command line do."""
    before = dump(system)

    for wrong in ("2,,17", "abc", "[2", [], "", " ", [2.5], ["x"], True, 2, {"2": 17}):
        with pytest.raises(ParamValidationError, match="Invalid input for param team_ids"):
            system.run(team_ids=wrong)

    assert dump(system) == before


class MarkedRun:
    """A run whose tasks were all marked before any began. Then single ones are executed, by Airflow, as if cleared."""

    def __init__(self, **conf: Any) -> None:
        self.dag = dags()[FILL]
        self.run = run_dag(self.dag, conf, marked=".*")

    def leave(self, **states: str) -> None:
        """Somebody cleared the run once; since then its tasks have come to these states."""
        with create_session() as session:
            session.get(DagRun, self.run.id).clear_number = 1
            for task_id, state in states.items():
                self._instance(task_id, session).set_state(state, session=session)

    def execute(self, task_id: str) -> str:
        """Returns the state that the task ends in."""
        with create_session() as session:
            instance = self._instance(task_id, session)
            instance.try_number = 1
        _run_task(ti=instance, task=self.dag.task_dict[task_id])
        with create_session() as session:
            return str(self._instance(task_id, session).state)

    def _instance(self, task_id: str, session: Session) -> TaskInstance:
        found = session.get(DagRun, self.run.id).get_task_instance(task_id, session=session)
        assert found
        return found


def test_a_run_whose_cleared_preflight_fails_is_reported(
    system: System, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It had been killed, so its row was Starting; then somebody cleared it as a whole."""
    monkeypatch.setenv("AIRFLOW__PDI2__CERTIFICATES", f"file://{tmp_path}")
    two_ids_each(system, TEAM)
    marked = MarkedRun()
    migrate_together(system, system.ledger(f"{FILL} {marked.run.run_id}"))
    marked.leave(preflight="failed", stop_old_writes="upstream_failed", end="upstream_failed")

    assert marked.execute("report") == "success"
    assert system.ledger().latest("report")["outcome"] == "failed"
    assert system.status() == 3


def test_a_dry_run_whose_plan_is_marked_by_hand_is_red(system: System, failures: Callable[[], list[str]]) -> None:
    """And then the run too: what has not begun is skipped, but for `report`."""
    marked = MarkedRun(dry_run=True)
    assert marked.execute("preflight") == "success"
    marked.leave(end="skipped")

    assert marked.execute("report") == "failed"
    assert any("somebody marked it" in text for text in failures())


@pytest.mark.parametrize("checked", ["never", "before another switch", "since"])
def test_old_writes_end_by_no_run_whose_preflight_did_not_see_this_switch(
    system: System, failures: Callable[[], list[str]], checked: str
) -> None:
    """`airflow tasks test` runs the task alone; or somebody clears it long after its run had failed."""
    two_ids_each(system, TEAM)
    earlier_run(system, stop_old_writes=False)
    marked = MarkedRun(read_cache_seconds=0)
    if checked != "never":
        assert marked.execute("preflight") == "success"
    if checked == "before another switch":
        roll_back(system.ledger("the rollback"))
        earlier_run(system, stop_old_writes=False)

    assert marked.execute("stop_old_writes") == ("success" if checked == "since" else "failed")
    told = any("preflight has not found that this run may begin" in text for text in failures())
    assert told == (checked != "since")
    assert system.switches()["writes"] == ("new" if checked == "since" else "both")
