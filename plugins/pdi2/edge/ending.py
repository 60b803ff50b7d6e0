"""The end of a run. However a run fails, it is red in Airflow, and each cause makes one task red.

The certificate is written here, where the operator wants it.
"""

import logging
from pathlib import Path
from typing import Any

from airflow.sdk import ObjectStoragePath, get_current_context

from pdi2.core.engines.failures import MigrationError, describe
from pdi2.core.plan.preflight import Verdict
from pdi2.core.report import certificate, reporting
from pdi2.core.report.reporting import UnfinishedError
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.ownership import is_owner
from pdi2.edge import END, configuration
from pdi2.edge.compat import AirflowSkipException
from pdi2.edge.connections import open_ledger, settings_of
from pdi2.edge.other_tasks import RED, left_by, states_of, verdict
from pdi2.edge.retries import task

log = logging.getLogger(__name__)

SUCCESS = "success"


@task(multiple_outputs=False)
def report() -> dict[str, Any]:
    """Reports how the run ended, and marks the migration row Errored with the reason if it failed.

    If a task failed, the run is red because it does not reach `end`. If the run did not get through and would be green
    because somebody marked it or its tasks by hand, this task makes it red. (When a run is marked, Airflow skips its
    remaining tasks except teardowns, and then takes the run's state from the tasks that nothing follows: `end` too,
    if the red of a task has yet to reach it.)
    """
    states = states_of("preflight", "stop_old_writes", END)
    facts, through = None, False
    checked = states.get("preflight") == SUCCESS
    if checked or get_current_context()["dag_run"].clear_number:  # else it owns nothing, and Postgres may be away
        with open_ledger() as ledger:
            if is_owner(ledger):
                facts = reporting.close_run(ledger, settings_of(ledger))
                log.info("Report\n%s", reporting.text(facts, ledger.teams()))
                try:
                    _write_certificate(ledger, facts)
                except MigrationError as error:
                    ledger.record("task_failed", task="report", error=describe(error))
                    raise
            if verdict() == Verdict.NOTHING:
                through = True
            elif checked:
                settings = settings_of(ledger)
                through = (
                    bool(left_by("plan_teams", "plan")) if settings.dry_run else reporting.got_through(ledger, settings)
                )
    red = states.get("stop_old_writes") in RED and states.get(END) in {*RED, None}  # None: it has yet to reach `end`
    if not through and not red:
        unfinished = UnfinishedError(
            "This run ended before it did what it was triggered for, and without this task it would be green: somebody "
            "marked it, or tasks of it, by hand. Only the ledger and the switches say what has happened; what is "
            "finished is kept. Trigger the run again: it does only what is missing."
        )
        if facts is not None:
            with open_ledger() as ledger:
                ledger.record("task_failed", task="report", error=describe(unfinished))
        raise unfinished
    if facts is None:
        raise AirflowSkipException("This run does not own the migration, so it reports nothing.")
    return facts


def _write_certificate(ledger: Ledger, report: dict[str, Any]) -> None:
    """Writes two files, and records an event that names them. Raises MigrationError if they cannot be written."""
    drawn_up = certificate.draw_up(ledger, report)
    ledger.keep_certificate(drawn_up.files)
    place = configuration.certificates()
    try:
        folder = ObjectStoragePath(place)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in drawn_up.files.items():
            file = folder / name
            if file.protocol in ("", "file", "local"):  # it may name ids of persons, so nobody else reads it
                Path(file.path).touch(mode=0o600)
            file.write_text(text, encoding="utf-8")
    except Exception as error:
        raise MigrationError(
            f"The certificate could not be written to {place}: {describe(error)}. This does not affect the migration, "
            "and the same facts are in the ledger. Correct [pdi2] certificates (AIRFLOW__PDI2__CERTIFICATES), or "
            "what keeps Airflow from writing there, then clear this task: it writes the certificate again."
        ) from error
    ledger.record("certificate_written", place=place, files=list(drawn_up.files), json_sha256=drawn_up.json_sha256)
    log.info("The certificate is in %s: %s", place, ", ".join(drawn_up.files))
