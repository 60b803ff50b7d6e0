"""What an operator sets once: the form, a schedule, notices, a deadline, the asset of the new table."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import structlog
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import BundleDagBag, DagBag, sync_bag_to_db
from airflow.jobs.job import Job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models import DagRun
from airflow.models.asset import AssetEvent
from airflow.models.dag import DagModel
from airflow.models.deadline import Deadline
from airflow.models.pool import Pool
from airflow.sdk.execution_time.callback_supervisor import execute_callback
from airflow.sdk.timezone import utcnow
from airflow.utils.session import create_session
from airflow.utils.sqlalchemy import prohibit_commit
from airflow.utils.state import DagRunState
from conftest import AUDIT, FILL, NOTHING_TO_WAIT_FOR, ROLLBACK, ROOT, System, run_dag
from pdi2.core.state.settings import SCHEMA
from pdi2.edge import POOL
from pdi2.edge.pool import SLOTS
from stories import accept, dump, refuse

from demo import schema
from demo.seed import Seeded, seed

TOLD: list[str] = []
"""What the function below was called with."""


def tell(context: Any, **kwargs: Any) -> None:
    """An operator's own callback, as `[pdi2] notifier` names it."""
    run = context["dag_run"]
    run = run if isinstance(run, dict) else {"dag_id": run.dag_id, "dag_run_id": run.run_id}
    TOLD.append(f"{kwargs.get('to')}: {run['dag_id']} {run['dag_run_id']}{' late' if 'deadline' in context else ''}")


NOT_A_NOTIFIER = 7
SMTP = "airflow.providers.smtp.notifications.smtp.SmtpNotifier"
NAMED = f"{__name__}.{tell.__name__}"


@pytest.fixture(autouse=True)
def nobody_called() -> Iterator[None]:
    TOLD.clear()
    yield
    TOLD.clear()


def configure(monkeypatch: pytest.MonkeyPatch, **options: str) -> Any:
    """Sets options of section [pdi2] and parses the DAG files again."""
    for name, value in options.items():
        monkeypatch.setenv(f"AIRFLOW__PDI2__{name.upper()}", value)
    return DagBag(ROOT / "dags")


def test_by_default_nothing_runs_by_itself_and_nobody_is_notified(monkeypatch: pytest.MonkeyPatch) -> None:
    bag = configure(monkeypatch)

    for dag in bag.dags.values():
        assert dag.timetable.can_be_scheduled is False
        assert dag.deadline is None
        assert dag.on_failure_callback is None


def test_the_form_is_grouped_and_says_what_each_field_does(monkeypatch: pytest.MonkeyPatch) -> None:
    params = configure(monkeypatch).dags[FILL].params
    sections = {name: params.get_param(name).schema.get("section") for name in SCHEMA}

    assert list(sections.values()) == sorted(sections.values(), key=bool), "what stands open comes first"
    open_ = {name for name, section in sections.items() if not section}
    assert open_ == {"team_ids", "dry_run", "require_approval", "stop_old_writes"}
    assert len(set(sections.values())) == 2
    for name in SCHEMA:
        param = params.get_param(name)
        assert param.schema["title"]
        assert param.description.endswith(".")
        if param.schema.get("type") == "integer":
            assert param.schema["minimum"] <= param.value <= param.schema["maximum"]


@pytest.mark.parametrize("dag_id", [FILL, ROLLBACK, AUDIT])
def test_the_dags_documentation_is_the_short_runbook(monkeypatch: pytest.MonkeyPatch, dag_id: str) -> None:
    dag = configure(monkeypatch).dags[dag_id]

    assert dag.doc_md == (ROOT / "dags" / f"{dag_id}.md").read_text()
    assert len(dag.doc_md.splitlines()) < 40
    for task in dag.tasks if dag_id == FILL else []:
        assert f"`{task.task_id}`" in dag.doc_md or task.task_id in ("enable_dual_writes", "plan_teams", "approve")


def test_a_schedule_and_its_parameters_need_no_edit_of_the_dag_file(monkeypatch: pytest.MonkeyPatch) -> None:
    bag = configure(monkeypatch, schedule="@daily", defaults='{"require_approval": true, "settle_seconds": 60}')
    dag = bag.dags[FILL]

    assert dag.timetable.expression == "0 0 * * *"
    assert dag.params["require_approval"] is True
    assert dag.params["settle_seconds"] == 60
    assert bag.dags[ROLLBACK].timetable.can_be_scheduled is False
    assert bag.dags[AUDIT].timetable.can_be_scheduled is False


def test_the_audit_has_a_schedule_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    bag = configure(monkeypatch, audit_schedule="0 3 * * 1")

    assert bag.dags[AUDIT].timetable.expression == "0 3 * * 1"
    assert bag.dags[FILL].timetable.can_be_scheduled is False


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"notifier": "nowhere.Notifier"}, "AIRFLOW__PDI2__NOTIFIER): nowhere.Notifier cannot be imported"),
        ({"notifier": "not a path"}, "cannot be imported"),
        ({"notifier": f"{__name__}.NOT_A_NOTIFIER"}, "neither an Airflow notifier nor a function"),
        ({"notifier": "pdi2.core.state.settings.Settings"}, "neither an Airflow notifier nor a function"),
        ({"notifier": SMTP, "notifier_kwargs": '{"nobody": 1}'}, "AIRFLOW__PDI2__NOTIFIER_KWARGS): "),
        ({"notifier": SMTP, "notifier_kwargs": "to=me"}, "is not JSON"),
        ({"notifier": SMTP, "notifier_kwargs": "[]"}, "is not a JSON object"),
        ({"deadline_minutes": "60"}, "name a notifier too"),
        ({"deadline_minutes": "soon", "notifier": NAMED}, '"deadline_minutes" key in "pdi2" section'),
        ({"defaults": '{"settle_seconds": -1}'}, "AIRFLOW__PDI2__DEFAULTS): Parameter settle_seconds cannot be -1"),
        ({"defaults": '{"slice_rows": 1}'}, 'Unknown parameter "slice_rows"'),
        ({"schedule": "every day"}, 'AIRFLOW__PDI2__SCHEDULE): "every day" is neither'),
        ({"audit_schedule": "hourly"}, 'AIRFLOW__PDI2__AUDIT_SCHEDULE): "hourly" is neither'),
        ({"schedule": "@continuous"}, '"@continuous" is neither'),
    ],
    ids=lambda value: None if isinstance(value, str) else ", ".join(value),
)
def test_a_wrong_option_is_an_import_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], told: str
) -> None:
    bag = configure(monkeypatch, **options)

    assert told in "".join(bag.import_errors.values())


def test_airflows_own_notifiers_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    kwargs = {"to": "night@example.com", "from_email": "airflow@example.com", "subject": "{{ dag_run.run_id }} failed"}
    bag = configure(monkeypatch, notifier=SMTP, notifier_kwargs=json.dumps(kwargs))

    assert bag.import_errors == {}
    for dag in bag.dags.values():
        assert type(dag.on_failure_callback).__name__ == "SmtpNotifier"
        assert dag.on_failure_callback.to == "night@example.com"


@pytest.mark.slow
@pytest.mark.usefixtures("airflow_metadata")
class TestRuns:
    @pytest.fixture
    def seeded(self, system: System) -> Seeded:
        return seed(system.postgres, system.clickhouse, rows=7_000, teams=3)

    def as_scheduled(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """A run that gets no parameters from anybody, and a notifier."""
        notices = {"notifier": NAMED, "notifier_kwargs": '{"to": "the night shift"}'}
        bag = configure(monkeypatch, schedule="@hourly", defaults=json.dumps(NOTHING_TO_WAIT_FOR), **notices)
        assert bag.import_errors == {}
        return run_dag(bag.dags[FILL])

    def test_scheduled_runs_continue_take_in_new_teams_and_end_with_nothing_to_do(
        self, monkeypatch: pytest.MonkeyPatch, system: System, seeded: Seeded, log: Any
    ) -> None:
        spoilt = seeded.team_ids[1]
        refuse(system, f"team_id = {spoilt}")
        switches = asset_events()
        failed = self.as_scheduled(monkeypatch)
        assert failed.state == "failed"
        assert [f"the night shift: {FILL} {failed.run_id}"] == TOLD
        assert asset_events() == switches
        done = {team_id: team.attempts for team_id, team in system.teams().items() if team.status == "verified"}
        assert set(done) == set(seeded.team_ids) - {spoilt}
        accept(system)
        schema.add_team(system.postgres, 424_242)
        system.writer().create(424_242, "an id of a team that came meanwhile")

        assert self.as_scheduled(monkeypatch).state == "success"

        assert system.status() == 2
        assert len(TOLD) == 1, "a good run is not notified of"
        assert asset_events() == [*switches, ("switch_reads", system.ledger().latest("reads_switched"))]
        assert asset_events()[-1][1]["teams"] == 4
        teams = system.teams()
        assert set(teams) == {*seeded.team_ids, 424_242}
        assert {team_id: teams[team_id].attempts for team_id in done} == done, "what is done is not done again"
        before = dump(system)
        log.clear()

        assert self.as_scheduled(monkeypatch).state == "success"

        lines = {record.getMessage() for record in log.records if record.name.startswith("pdi2")}
        assert lines == {"The migration is complete already; there is nothing to do."}
        assert dump(system) == before
        assert len(asset_events()) == len(switches) + 1, "a run with nothing to do updates nothing"

    def test_the_asset_is_not_updated_by_what_switches_nothing(self, system: System, seeded: Seeded) -> None:
        before = asset_events()
        assert system.run(team_ids=[seeded.team_ids[-1]]).state == "success"
        assert system.run(dry_run=True).state == "success"
        assert asset_events() == before

    @pytest.fixture
    def scheduler(self, monkeypatch: pytest.MonkeyPatch) -> Iterator["Scheduler"]:
        """The part of Airflow's scheduler that makes runs. The migration is due every hour."""
        options = {"notifier": NAMED, "notifier_kwargs": '{"to": "the night shift"}', "deadline_minutes": "90"}
        assert configure(monkeypatch, schedule="@hourly", **options).import_errors == {}
        monkeypatch.setenv("AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL", "0")
        scheduler = Scheduler()
        yield scheduler
        scheduler.forget()

    def test_airflows_deadline_notifies_of_a_run_that_takes_too_long(self, scheduler: "Scheduler") -> None:
        """This is what the scheduler does: it makes the deadline with the run, and the executor calls the callback."""
        [(run_id, queued_at)] = scheduler.make_due_runs()

        due, callback = scheduler.miss_the_deadline()

        assert due == queued_at + timedelta(minutes=90)
        done = execute_callback(callback["path"], callback["kwargs"], "", None, structlog.get_logger())
        assert done == (True, None)
        assert [f"the night shift: {FILL} {run_id} late"] == TOLD

    def test_a_run_makes_the_pool_that_somebody_deleted(self, scheduler: "Scheduler") -> None:
        """Airflow never schedules a task in a pool that does not exist, and does not say so."""
        with create_session() as session:
            session.query(Pool).filter_by(pool=POOL).delete()
        scheduler.make_due_runs()

        scheduler.start_runs()

        with create_session() as session:
            pool = Pool.get_pool(POOL, session=session)
            assert pool is not None
            assert pool.slots == SLOTS

    def test_runs_that_are_due_while_one_waits_are_not_made_up_for(self, scheduler: "Scheduler") -> None:
        """A run may watch dual writes for days. No other is made meanwhile; a late one and one due now follow."""
        [waiting] = scheduler.make_due_runs()
        for _ in range(3):
            scheduler.let_hours_pass(1)
            assert scheduler.make_due_runs() == [], "some are due, and none is made"

        made = []
        for _ in range(4):
            scheduler.end_runs()
            made += scheduler.make_due_runs()

        assert 1 <= len(made) <= 2
        assert waiting not in made


class Scheduler:
    """Makes the migration's due runs in Airflow's metadata, and executes none of their tasks."""

    def __init__(self) -> None:
        self.forget()
        manager = DagBundlesManager()
        manager.sync_bundles_to_db()
        [bundle] = manager.get_all_dag_bundles()
        bag = BundleDagBag(dag_folder=bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
        sync_bag_to_db(bag, bundle.name, bundle.version)
        with create_session() as session:
            model = session.get(DagModel, FILL)
            model.is_paused, model.exceeds_max_non_backfill = False, False
        self.job = SchedulerJobRunner(Job(), num_runs=1)
        self.let_hours_pass(1)

    def make_due_runs(self) -> list[tuple[str, datetime]]:
        """Returns the run id and the time of queueing of each run that was not there before."""
        with create_session() as session:
            before = {run.run_id for run in self._runs(session)}
            with prohibit_commit(session) as guard:
                self.job._create_dagruns_for_dags(guard, session)
            return [(run.run_id, run.queued_at) for run in self._runs(session) if run.run_id not in before]

    def start_runs(self) -> None:
        """Queued runs begin, and the listeners hear of it."""
        with create_session() as session, prohibit_commit(session) as guard:
            self.job._start_queued_dagruns(session)
            guard.commit()

    def let_hours_pass(self, hours: int) -> None:
        """Makes the next run due that many hours ago."""
        with create_session() as session:
            model = session.get(DagModel, FILL)
            due = utcnow().replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours)
            model.next_dagrun = model.next_dagrun_create_after = due
            model.next_dagrun_data_interval = (due, due)

    def end_runs(self) -> None:
        with create_session() as session:
            for run in self._runs(session):
                run.set_state(DagRunState.SUCCESS)
            self.job._set_exceeds_max_active_runs(dag_model=session.get(DagModel, FILL), session=session)

    def miss_the_deadline(self) -> tuple[datetime, dict[str, Any]]:
        with create_session() as session:
            [deadline] = session.query(Deadline).all()
            deadline.handle_miss(session)
            return deadline.deadline_time, deadline.callback.data

    def forget(self) -> None:
        with create_session() as session:
            for run in self._runs(session):
                session.delete(run)

    def _runs(self, session: Any) -> list[Any]:
        return session.query(DagRun).filter(DagRun.dag_id == FILL).order_by(DagRun.id).all()


def asset_events() -> list[tuple[str, dict[str, Any]]]:
    with create_session() as session:
        return [(event.source_task_id, event.extra) for event in session.query(AssetEvent).order_by(AssetEvent.id)]
