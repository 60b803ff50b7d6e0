"""Copies share an Airflow pool: its slots are how many run at once, and an operator may change them meanwhile."""

import logging
from typing import Any

from airflow.listeners import hookimpl
from airflow.sdk.execution_time.task_runner import TaskRunnerMarker

from pdi2.edge import POOL

log = logging.getLogger(__name__)

FILL = "fill_person_distinct_id2"
SLOTS = 2


@hookimpl
def on_starting(component: Any) -> None:
    """Creates the pool as Airflow starts, where there is none yet: nothing is scheduled into a pool that is not there.

    Called for every component, before it tells which one it is; and for every task, which may not touch the metadata.
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
    """The scheduler's word that a run begins: creates the pool where somebody deleted it since Airflow started."""
    from sqlalchemy.orm import object_session

    if dag_run.dag_id == FILL and (session := object_session(dag_run)) and _create_where_missing(session):
        log.warning("The pool %s was missing, so no copy could begin. It is there again, with %s slots.", POOL, SLOTS)


def _create_where_missing(session: Any) -> bool:
    """Within the session's transaction, which the caller commits."""
    from airflow.models.pool import Pool

    if Pool.get_pool(POOL, session=session) is not None:
        return False
    description = "Copies of the person_distinct_id2 migration that run at once"
    session.add(Pool(pool=POOL, slots=SLOTS, description=description, include_deferred=False))
    return True
