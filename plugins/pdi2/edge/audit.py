"""The tasks of the audit. It owns nothing of the migration and holds no lock, and no migration waits for it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from airflow.providers.common.compat.sdk import conf
from airflow.sdk import Param

from pdi2.core.cluster.ours import catch_up
from pdi2.core.engines.failures import WaitError, describe, naming_failures
from pdi2.core.state.settings import AUDIT_SCHEMA
from pdi2.core.state.slices import NEW_TABLE
from pdi2.core.verify import auditing
from pdi2.edge import NO_DRIFT, TEAM_LABEL
from pdi2.edge.compat import AirflowRescheduleException
from pdi2.edge.connections import Workbench, current_settings, open_ledger, open_warehouse, put_off, refuse_a_standby
from pdi2.edge.other_tasks import RED, states_of, tell
from pdi2.edge.retries import raise_together, task

log = logging.getLogger(__name__)


def params() -> dict[str, Param]:
    return {name: Param(**schema) for name, schema in AUDIT_SCHEMA.items()}


@contextmanager
def looking(purpose: str) -> Iterator[Workbench]:
    settings = current_settings(AUDIT_SCHEMA)
    try:
        with (
            open_ledger() as ledger,
            naming_failures(purpose),
            open_warehouse(purpose, settings.max_memory_usage) as warehouse,
        ):
            refuse_a_standby(ledger)
            catch_up(warehouse, [NEW_TABLE])
            yield Workbench(ledger, warehouse, settings)
    except WaitError as wait:
        log.warning("%s", wait)
        raise put_off() from wait


@task
def choose_teams() -> list[dict[str, Any]]:
    """Chooses every team, or before the switch only the verified ones; one mapped task per batch of teams."""
    with looking("choose_teams") as bench:
        most = conf.getint("core", "max_map_length")
        batches = auditing.plan(bench.ledger, bench.warehouse, bench.settings, most)
    return [{"team_ids": batch.team_ids, "label": batch.label} for batch in batches]


@task(map_index_template=TEAM_LABEL)
def compare(batch: dict[str, Any]) -> None:
    """Compares the batch's teams with Postgres, id by id. A team that fails does not stop the others."""
    failures: list[Exception] = []
    old_differs: dict[int, int | None] = {}
    waits = False
    with looking("audit") as bench:
        # none is left if somebody cleared a task that was done: then all are compared again
        left = auditing.left(bench.ledger, batch["team_ids"]) or batch["team_ids"]
        log.info("Teams left to compare in this audit: %s of %s", len(left), len(batch["team_ids"]))
        pending = auditing.groups(bench.warehouse, left) if left else []
    while pending and not waits:
        teams = pending.pop(0)
        try:
            with looking(f"audit {teams}") as bench:
                old_differs |= auditing.audit(bench.ledger, bench.warehouse, teams, bench.settings)
        except AirflowRescheduleException:
            waits = True
        except Exception as error:
            if len(teams.team_ids) > 1:
                log.warning(
                    "%s could not be compared together, so each is now done by itself: %s", teams, describe(error)
                )
                pending += [replace(teams, team_ids=(team_id,)) for team_id in teams.team_ids]
            else:
                failures.append(error)
    with open_ledger() as ledger:
        auditing.record(ledger, old_differs)
    raise_together(failures)
    if waits:
        raise put_off()


@task(trigger_rule="all_done", multiple_outputs=False)
def report_drift() -> dict[str, Any]:
    """Reports the drift in the ledger by kind; fails if some is left, or if a team was not compared."""
    red = RED & set(states_of("choose_teams", "compare").values())
    with open_ledger() as ledger:
        try:
            audit, told = auditing.judge(ledger, bool(red))
        except auditing.DriftError as drift:
            tell("message", str(drift))
            raise
    log.info(told)
    tell(NO_DRIFT, "no drift" if audit.planned else "nothing to compare")
    return audit.findings
