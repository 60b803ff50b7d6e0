"""Copies share an Airflow pool: its slots are how many run at once, and an operator may change them meanwhile."""

from typing import Any

from airflow.listeners import hookimpl
from airflow.models.pool import Pool
from airflow.utils.session import create_session

POOL = "pdi2_copies"
SLOTS = 2


@hookimpl
def on_starting(component: Any) -> None:
    """Creates the pool when the scheduler starts, where there is none yet: Airflow schedules nothing without it."""
    if component.job_type != "SchedulerJob":
        return
    with create_session() as session:
        if Pool.get_pool(POOL, session=session) is None:
            Pool.create_or_update_pool(
                POOL, SLOTS, "Copies of the person_distinct_id2 migration at work", False, session=session
            )
