"""Copies share an Airflow pool: its slots are how many run at once, and an operator may change them meanwhile."""

import logging
from typing import Any

from airflow.listeners import hookimpl
from airflow.sdk.execution_time.task_runner import TaskRunnerMarker

from pdi2.edge import POOL

log = logging.getLogger(__name__)

SLOTS = 2


@hookimpl
def on_starting(component: Any) -> None:
    """Creates the pool as Airflow starts, where there is none yet: nothing is scheduled into a pool that is not there.

    Called for every component, before it tells which one it is; and for every task, which may not touch the metadata.
    """
    if isinstance(component, TaskRunnerMarker):
        return
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy.exc import IntegrityError

    description = "Copies of the person_distinct_id2 migration that run at once"
    try:
        with create_session() as session:
            if Pool.get_pool(POOL, session=session) is None:
                Pool.create_or_update_pool(POOL, SLOTS, description, include_deferred=False, session=session)
    except IntegrityError:
        log.info("Another component of Airflow created the pool %s at the same moment.", POOL)
