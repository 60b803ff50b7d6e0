"""What a task knows of the others in its run: their states, and the XComs that they leave for it and for the page."""

from collections.abc import Mapping
from typing import Any

from airflow.sdk import get_current_context

from pdi2.edge import VERDICT

RED = {"failed", "upstream_failed"}
"""The states of a task that failed, or that could not begin because one before it failed."""


def states_of(*task_ids: str) -> Mapping[str, str]:
    """Airflow's states of the tasks that this run got to, by task; of a mapped task, by task and number."""
    run = get_current_context()["dag_run"]
    found = get_current_context()["ti"].get_task_states(run.dag_id, task_ids=list(task_ids), run_ids=[run.run_id])
    return found.get(run.run_id, {})


def tell(key: str, value: Any) -> None:
    """Leaves an XCom for the migration page, because only Airflow knows about a run that does not own the ledger."""
    get_current_context()["ti"].xcom_push(key, value)


def left_by(task_id: str, key: str) -> str | None:
    """What the task told; None if it did not come that far, or if somebody marked it."""
    found: str | None = get_current_context()["ti"].xcom_pull(task_ids=task_id, key=key)
    return found


def verdict() -> str | None:
    """What this run's preflight found; None if it found problems."""
    return left_by("preflight", VERDICT)
