"""The Airflow pool that copies share: as many run at once as it has slots, which an operator may change at any time."""

import logging
from typing import Any

from airflow.listeners import hookimpl
from airflow.sdk.execution_time.task_runner import TaskRunnerMarker

from pdi2.edge import FILL, POOL

log = logging.getLogger(__name__)

SLOTS = 2


@hookimpl
def on_starting(component: Any) -> None:
    """Creates the pool when Airflow starts, if it is missing: Airflow schedules no task into a missing pool.

    Airflow calls this for every component, before it is known which one it is, and for every task, which may not
    access the metadata database.
    """
    if isinstance(component, TaskRunnerMarker):
        return
    from airflow.utils.session import create_session
    from sqlalchemy.exc import IntegrityError

    try:
        with create_session() as session:
            _create_where_missing(session)
    except IntegrityError:
        log.info("Another component of Airflow created the pool %s at the same moment.", POOL)


@hookimpl
def on_dag_run_running(dag_run: Any, msg: str) -> None:
    """Creates the pool when the scheduler starts a run, if somebody deleted it since Airflow started."""
    from sqlalchemy.orm import object_session

    if dag_run.dag_id == FILL and (session := object_session(dag_run)) and _create_where_missing(session):
        log.warning("The pool %s was missing, so no copy could begin. It is there again, with %s slots.", POOL, SLOTS)


def _create_where_missing(session: Any) -> bool:
    """Creates the pool within the session's transaction, which the caller commits."""
    from airflow.models.pool import Pool

    if Pool.get_pool(POOL, session=session) is not None:
        return False
    description = "Copies of the person_distinct_id2 migration that run at once"
    session.add(Pool(pool=POOL, slots=SLOTS, description=description, include_deferred=False))
    return True
