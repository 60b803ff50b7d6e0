"""The end of old writes, which is irreversible: when no reader uses the old table any more, and nothing is wrong."""

from datetime import datetime, timedelta

from pdi2.core.cluster import replicas
from pdi2.core.cluster.pressure import refuse_while_paused
from pdi2.core.engines import postgres
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.state.slices import named
from pdi2.core.state.switches import Status, Switches
from pdi2.core.switch import proof
from pdi2.core.switch.gate import CHECK, GOES_ON, GateError, note, refuse_trials, wait_if

PUT_OFF = "old_writes_put_off"
OLD_GO_ON = "So old writes go on, and a rollback stays possible."


def old_writes_end(ledger: Ledger, settings: Settings) -> datetime:
    """The time, by Postgres's clock, from which no reader uses the old table any more.

    Raises GateError if this project has not switched reads to the new table, or if the run is a trial.
    """
    refuse_trials(settings)
    switches = Switches(ledger.connection)
    row = switches.row()
    if row is None or row.status != Status.COMPLETED_SUCCESSFULLY or row.finished_at is None:
        raise GateError(
            "Reads are not, or no longer, on the new table, so old writes go on. Nothing was changed. If somebody "
            "rolled back, all is well; to migrate again, trigger a new run."
        )
    if not ledger.switched(row.finished_at):
        raise GateError(
            "The migration row was completed by somebody else (PostHog's own runner, or an administrator), so nothing "
            "proves that the new table agrees with Postgres, and old writes go on. Nothing was changed. Trigger "
            'audit_person_distinct_id2: it compares every team, and with {"repair": true} repairs the new table.'
        )
    _refuse_if_followed(ledger)
    # Without instance settings we cannot stop old writes: each process stops when it restarts, so we do not wait.
    wait = settings.read_cache_seconds if switches.has_settings else 0
    return ledger.switch_committed() + timedelta(seconds=wait)


def _refuse_if_followed(ledger: Ledger) -> None:
    """Only the newest run decides whether old writes end. A run that only ends them has claimed nothing."""
    if postgres.value(ledger.connection, "run_followed", {"airflow_run": ledger.airflow_run}):
        raise GateError(
            "A later run has taken the migration over, so this run's parameters no longer decide whether old writes "
            "end. Nothing was changed: old writes go on as that run left them. To end them, trigger the "
            "DAG anew with stop_old_writes on."
        )


def stop_old_writes(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> None:
    """Stops old writes; from then on there is no way back.

    Raises WaitError if the migration is paused, the new table answers wrongly, some replica lacks a part of it or a
    link was missed, and GateError if somebody set a setting back.
    """
    refuse_while_paused(ledger, "The end of old writes")
    switches = Switches(ledger.connection)
    if switches.writes() == "both":  # without settings the application ends old writes itself
        replicas.once_everywhere(
            warehouse, "The end of old writes", lambda _, reason: note(ledger, f"{reason} {OLD_GO_ON}", PUT_OFF)
        )
        wait_if(ledger, _why_the_way_back_is_needed(ledger, warehouse, settings), PUT_OFF)
    with ledger.transaction():
        ledger.hold_events()
        refuse_while_paused(ledger, "The end of old writes")
        switches.change(Status.COMPLETED_SUCCESSFULLY, Status.COMPLETED_SUCCESSFULLY)
        _refuse_if_followed(ledger)
        if set_back := switches.set_back():
            raise GateError(f"{set_back} Old writes were not ended, and nothing was changed.")
        switches.set_writes("new")
        ledger.record("old_writes_stopped", by_the_application=not switches.has_settings)


def _why_the_way_back_is_needed(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> str | None:
    if missed := proof.missed(ledger, warehouse, settings):
        return (
            f"{missed} {OLD_GO_ON} {CHECK} If it has lost links, trigger "
            f'audit_person_distinct_id2 with {{"repair": true}}, which writes them. {GOES_ON}'
        )
    if wrong := ledger.with_open_findings():
        return (
            f"An audit found that the new table answers wrongly ({named(sorted(wrong))}), so old writes go on, and a "
            "rollback stays possible. Find out why, then trigger "
            'audit_person_distinct_id2 with {"repair": true}: old writes end after that.'
        )
    return None
