"""The way back: reads return to the old table, as long as it has everything."""

from pdi2.core.engines.failures import MigrationError
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.ownership import claim
from pdi2.core.state.switches import Status, Switches


class RollbackError(MigrationError):
    """Going back would lose writes, or there is nothing to go back from yet."""


def roll_back(ledger: Ledger) -> str:
    """Sets reads back to the old table; writes go on to both. Raises RollbackError if old writes have ever stopped, or
    if a run may yet switch reads."""
    switches = Switches(ledger.connection)
    if ledger.exists():
        with ledger.transaction():
            ledger.hold_events()  # a switch that is in its transaction ends first
    row = switches.row()
    if row is None or row.status != Status.COMPLETED_SUCCESSFULLY:
        return _nothing_to_roll_back(ledger, switches, Status(row.status).name if row else "missing")
    if not switches.has_settings:
        raise RollbackError(
            "This release of PostHog stops writing the old table by itself once the migration is complete, so the "
            "old table lacks what came since, and reading it would lose updates. Nothing was changed. To go back, "
            "restore the old table from Postgres first."
        )
    _refuse_to_lose_updates(ledger, switches)
    ledger.create()
    with ledger.transaction():
        claim(ledger, {}, alone=False)  # a session of a host that died must not hold up the way back
        switches.change(Status.COMPLETED_SUCCESSFULLY, Status.ROLLED_BACK, progress=0)  # as PostHog's own rollback does
        _refuse_to_lose_updates(ledger, switches)  # a run that was ending old writes may have locked the row until now
        switches.set_reads("old")
        ledger.record("rolled_back")
        ledger.end_run("rolled back")
    return (
        "Reads are back on the old table, and both tables are written. PostHog's processes that saw the migration "
        "complete remember it until they are restarted: restart them now."
    )


def _nothing_to_roll_back(ledger: Ledger, switches: Switches, status: str) -> str:
    if switches.reads() == "new":
        raise RollbackError(
            f'The migration row says {status}, but PERSON_DISTINCT_ID_READS is "new": somebody changed one of them '
            'by hand. Nothing was changed. Set it to "old", and find out who and why.'
        )
    run = ledger.current_run()
    if run and run.ended_at is None and not run.settings.get("team_ids"):
        raise RollbackError(
            f"Reads are on the old table (the migration row says {status}), so there is nothing to roll back yet. But "
            f'run "{run.airflow_run}" left no report: if it still goes on in Airflow, it may yet switch them. Nothing '
            "was changed. Pause the migration on the Migration page, or mark that run as failed in Airflow."
        )
    return f"Reads are on the old table already (the migration row says {status}); there is nothing to roll back."


def _refuse_to_lose_updates(ledger: Ledger, switches: Switches) -> None:
    """Old writes may have stopped before somebody set the switches back by hand, and migrated again."""
    if ledger.old_table_lacks_writes() or switches.writes() != "both":
        raise RollbackError(
            f'Old writes have stopped (PERSON_DISTINCT_ID_WRITES is now "{switches.writes()}"), so the old table lacks '
            "what came since, and reading it would lose updates. Nothing was changed. The new table agrees with "
            "Postgres: stay on it."
        )
