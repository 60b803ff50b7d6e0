"""What only Airflow knows about runs: their states, which tasks wait for their next try, and what a dry run planned."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancehistory import TaskInstanceHistory
from airflow.models.xcom import XComModel
from airflow.utils.state import DagRunState, State, TaskInstanceState
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pdi2.core.report.telling import cause, known_cause
from pdi2.edge import END, FILL, NO_DRIFT, OLD_WRITES_END

ROLLBACK = "rollback_person_distinct_id2"
AUDIT = "audit_person_distinct_id2"
OURS = (FILL, ROLLBACK, AUDIT)
"""The page shows no other DAGs, because its readers may lack the permission to see those."""
LISTED = 5
GOING_ON = (DagRunState.QUEUED, DagRunState.RUNNING)
QUEUED = "queued: runs take turns"
UNREPORTED = "left no report"
"""The outcome of a run that somebody marked as a success: nothing but its colour says that it did anything."""
LAST = ("report", "roll_back", END)
"""The tasks that end a run. Airflow needs a moment after them to end it too."""
WAITING = (TaskInstanceState.SCHEDULED, TaskInstanceState.QUEUED)
STILL = timedelta(minutes=5)
"""Airflow starts a task that may begin within seconds, if it can."""
EXPLAINED = hasattr(TaskInstance, "retry_reason")
"""Whether Airflow keeps why a try failed and when the next is due, as it does from 3.3 on."""
UNEXPLAINED = (
    "The task gave no reason: Airflow lost or killed it, as the scheduler's log says."
    if EXPLAINED
    else "Airflow before 3.3 does not keep why: the task's log says it."
)

KEPT_ELSEWHERE = re.compile(r"[\w+.-]+://\S+")
"""What Airflow's database has of a value that its XCom backend keeps in object storage."""
ELSEWHERE = "Airflow's XCom backend keeps the text in object storage. The log of the run's task has it too."


def run(session: Session, airflow_run: str) -> DagRun | None:
    """The run with the ledger's name for it, which is its DAG's id and its own id; None if it is of another DAG."""
    dag_id, _, run_id = airflow_run.partition(" ")
    found = select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id, DagRun.dag_id.in_(OURS))
    return session.scalar(found)


def newest(session: Session, limit: int, dag_ids: Iterable[str] = OURS) -> list[DagRun]:
    chosen = select(DagRun).where(DagRun.dag_id.in_(dag_ids))
    return list(session.scalars(chosen.order_by(DagRun.queued_at.desc(), DagRun.id.desc()).limit(limit)))


def goes_on_after_its_report(session: Session, airflow_run: str) -> bool:
    """Whether tasks are left that come before `report`, as after somebody cleared those that failed."""
    dag_run = run(session, airflow_run)
    if dag_run is None or dag_run.state not in GOING_ON:
        return False
    left = TaskInstance.state.is_(None) | TaskInstance.state.not_in(State.finished)
    found = select(TaskInstance.id).where(*_of(dag_run), left, TaskInstance.task_id.not_in(LAST)).limit(1)
    return session.scalar(found) is not None


def as_it_is(session: Session, owner: dict[str, Any] | None) -> dict[str, Any] | None:
    """The ledger's run, or None. One that goes on after its report has not ended."""
    if owner and owner["newest"] and owner["ended_at"] and goes_on_after_its_report(session, owner["airflow_run"]):
        return {**owner, "ended_at": None, "outcome": None}
    return owner


def tasks(session: Session, dag_run: DagRun) -> dict[str, Any]:
    """How many tasks there are by task id and state, which wait for another try, and which engine does not answer."""
    of_run = _of(dag_run)
    columns = (TaskInstance.task_id, TaskInstance.state, func.count())
    states: dict[str, dict[str, int]] = {}
    for task_id, state, count in session.execute(select(*columns).where(*of_run).group_by(*columns[:2])):
        states.setdefault(task_id, {})[state or "waiting"] = count
    retry = TaskInstance.state == TaskInstanceState.UP_FOR_RETRY
    waiting = list(session.scalars(select(TaskInstance).where(*of_run, retry)))
    # Airflow forgets why a try failed as soon as the next one starts; until then the engine counts as away.
    not_yet = TaskInstance.state.in_((TaskInstanceState.UP_FOR_RETRY, *WAITING))
    reasons = session.scalars(select(TaskInstance.retry_reason).where(*of_run, not_yet)) if EXPLAINED else ()
    away = Counter(hit.group(1) for reason in reasons if (hit := known_cause(reason or "")) and hit.group(1))
    return {
        "states": states,
        "retrying": _retrying(waiting) if waiting else None,
        "unanswered": away.most_common(1)[0][0] if away else None,
    }


def dag_is_paused(session: Session) -> bool:
    """Whether somebody paused the DAG in Airflow, which then starts none of its tasks, nor a run that is queued."""
    return bool(session.scalar(select(DagModel.is_paused).where(DagModel.dag_id == FILL)))


def still(session: Session, dag_run: DagRun | None) -> dict[str, Any] | None:
    """Since when no task of a running run has begun or ended, and how many could; None if it is not for long."""
    if dag_run is None or dag_run.state not in GOING_ON:
        return None
    chosen = select(TaskInstance.state, func.count(), func.max(TaskInstance.updated_at)).where(*_of(dag_run))
    found = {state: (count, at) for state, count, at in session.execute(chosen.group_by(TaskInstance.state))}
    since = max((at for _, at in found.values() if at), default=None)
    if since is None or datetime.now(UTC) - since < STILL or found.keys() & (State.unfinished - {None, *WAITING}):
        return None
    return {"since": since, **{str(state): found.get(state, (0,))[0] for state in WAITING}}


def scheduler_away_since(session: Session) -> datetime | None:
    """The last sign of life of Airflow's scheduler, if it is down: no task begins, or is tried again, without it."""
    job = SchedulerJobRunner.most_recent_job(session=session)
    return job.latest_heartbeat if job and not job.is_alive() else None


def old_writes_end(session: Session) -> datetime | None:
    """When a run that only ends old writes, and does not own the ledger, will do so; None if no such run goes on."""
    going = session.scalars(select(DagRun).where(DagRun.dag_id == FILL, DagRun.state.in_(GOING_ON))).all()
    ends = (one[OLD_WRITES_END] for one in left_for_the_page(session, going).values() if OLD_WRITES_END in one)
    return next(map(datetime.fromisoformat, ends), None)


def unanswered_since(session: Session, dag_run: DagRun, engine: str, last_row_at: datetime | None) -> datetime | None:
    """The end of the first try that `engine` did not answer, since the last row: until then the engine did answer."""
    tries = select(func.min(TaskInstanceHistory.end_date)).where(
        *_of(dag_run, TaskInstanceHistory), TaskInstanceHistory.retry_reason.contains(f"{engine} does not answer")
    )
    return session.scalar(tries.where(TaskInstanceHistory.end_date > last_row_at) if last_row_at else tries)


def left_for_the_page(session: Session, dag_runs: Iterable[DagRun]) -> dict[str, dict[str, Any]]:
    """By the ledger's name of a run, what its tasks left: problems, message, plan, no_drift, old_writes_end."""
    chosen = select(XComModel.dag_id, XComModel.run_id, XComModel.key, XComModel.value).where(
        XComModel.dag_run_id.in_([dag_run.id for dag_run in dag_runs]),
        XComModel.key.in_(("problems", "message", "plan", NO_DRIFT, OLD_WRITES_END)),
    )
    found: dict[str, dict[str, Any]] = {}
    for dag_id, run_id, key, value in session.execute(chosen):
        of_run = found.setdefault(f"{dag_id} {run_id}", {})
        if not (isinstance(value, str) and KEPT_ELSEWHERE.fullmatch(value)):
            of_run[key] = value
        elif key != OLD_WRITES_END:
            of_run[key] = [ELSEWHERE] if key == "problems" else ELSEWHERE
    return found


def summary(dag_run: DagRun, ledger: Mapping[str, Any] | None, told: Mapping[str, Any]) -> dict[str, Any]:
    """A line in the list of runs. `ledger` is the run's line in the ledger; None if it never owned the migration."""
    return {
        "airflow_run": name(dag_run),
        "dag_id": dag_run.dag_id,
        "run_id": dag_run.run_id,
        "kind": _kind(dag_run, ledger),
        "actor": dag_run.triggering_user_name or "airflow",
        "started_at": dag_run.start_date or dag_run.queued_at,
        "ended_at": dag_run.end_date,
        "state": dag_run.state,
        "outcome": _outcome(dag_run, ledger, told),
        "certificate": ledger["id"] if ledger and ledger["certificate"] else None,
    }


def _of(dag_run: DagRun, tries: Any = TaskInstance) -> tuple[Any, Any]:
    """The conditions on a table of tries that choose those of the run."""
    return tries.dag_id == dag_run.dag_id, tries.run_id == dag_run.run_id


def name(dag_run: DagRun) -> str:
    return f"{dag_run.dag_id} {dag_run.run_id}"


def _kind(dag_run: DagRun, ledger: Mapping[str, Any] | None) -> str:
    if dag_run.dag_id != FILL:
        return "rollback" if dag_run.dag_id == ROLLBACK else "audit"
    settings = {**(dag_run.conf or {}), **(ledger["settings"] if ledger else {})}
    if settings.get("dry_run"):
        return "dry run"
    return "trial" if settings.get("team_ids") else "migration"


def _outcome(dag_run: DagRun, ledger: Mapping[str, Any] | None, told: Mapping[str, Any]) -> str:
    if dag_run.state in GOING_ON:
        return QUEUED if dag_run.state == DagRunState.QUEUED else dag_run.state
    if ledger and ledger["outcome"]:
        return ledger["outcome"]
    if told.get("problems") and not ledger:
        return "refused: nothing was changed"
    if dag_run.dag_id == AUDIT and told.get("message"):
        return "drift found"
    if dag_run.state == DagRunState.FAILED:
        return "failed"
    if dag_run.dag_id == AUDIT:
        return told.get(NO_DRIFT, UNREPORTED)
    if told.get(OLD_WRITES_END):
        return "old writes stopped"
    if told.get("plan"):
        return "planned: nothing was written"
    return "nothing to do" if told.get("message") else UNREPORTED


def _retrying(waiting: list[TaskInstance]) -> dict[str, Any]:
    reasons = [task.retry_reason if EXPLAINED else None for task in waiting]
    causes = Counter(cause(reason) if reason else UNEXPLAINED for reason in reasons)
    tries = [task.try_number + 1 for task in waiting]
    return {
        "tasks": len(waiting),
        "next_tries": [min(tries), max(tries)],
        "tries": max(task.max_tries for task in waiting) + 1,
        "due": min((due for task in waiting if (due := _due(task))), default=None),
        "causes": [{"cause": text, "tasks": count} for text, count in causes.most_common(LISTED)],
        "reason": next(filter(None, reasons), None),
    }


def _due(task: TaskInstance) -> datetime | None:
    """When the task is tried again, by the retry policy's delay. None where Airflow's own decides, as after a kill."""
    if not EXPLAINED or task.end_date is None or task.retry_delay_override is None:
        return None
    return task.end_date + timedelta(seconds=task.retry_delay_override)
