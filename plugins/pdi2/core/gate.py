"""The gate before the switch, the switch itself, and the way back. Facts come from the ledger alone."""

from datetime import datetime, timedelta
from typing import Any

from pdi2.core import replicas
from pdi2.core.clickhouse import Warehouse
from pdi2.core.failures import MigrationError
from pdi2.core.ledger import FAILED, Ledger, Team, TeamStatus
from pdi2.core.planning import chosen, rows_by_team
from pdi2.core.settings import Settings
from pdi2.core.switches import Status, Switches
from pdi2.core.verifying import verify_changes

LISTED = 20


class GateError(MigrationError):
    """Some team is not proven; reads stay on the old table."""


class NoPlanError(GateError):
    """There is nothing to certify, because of a failure that another task tells of."""


class RollbackError(MigrationError):
    """Going back would lose writes."""


def certify(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> dict[str, Any]:
    """Every team that exists now must be verified in the ledger; raises GateError with those that are not."""
    certificate = _judge(ledger, warehouse, settings)
    certificate["replicas"] = replicas.survey(warehouse)
    ledger.record("certified", **certificate, trial=settings.team_ids is not None)
    return certificate


def _judge(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> dict[str, Any]:
    if ledger.latest_of_run("planned") is None:
        raise NoPlanError("This run made no plan, so there is nothing to certify. See the first task that failed.")
    teams = {team.team_id: team for team in ledger.teams()}
    known = dict.fromkeys(teams, 0) | rows_by_team(ledger.connection, warehouse)
    wanted = chosen(known, settings)
    missing = [reason for team_id in wanted if (reason := _not_verified(team_id, teams.get(team_id)))]
    if missing:
        more = f"\n  and {len(missing) - LISTED:,} more" if len(missing) > LISTED else ""
        raise GateError(
            f"{len(missing):,} of {len(wanted):,} teams are not verified, so reads stay on the old table:\n  "
            + "\n  ".join(missing[:LISTED])
            + more
            + "\nWhat is done is kept. Remove the causes and trigger the run again: it does only what is missing."
        )
    return {
        "teams": len(wanted),
        "rows_source": sum(teams[team_id].rows_source for team_id in wanted),
        "rows_copied": sum(teams[team_id].rows_copied for team_id in wanted),
        "findings": ledger.findings_by_kind(),
    }


def _not_verified(team_id: int, team: Team | None) -> str | None:
    if team is None:
        return f"team {team_id}: appeared after the plan"
    if team.status == TeamStatus.VERIFIED:
        return None
    return f"team {team_id}: {team.status}" + (f" ({team.error})" if team.error else "")


def switch_reads(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> None:
    """What changed since the teams were verified is compared, and repaired, and every replica has it.

    Then one transaction: the gate once more, the row to CompletedSuccessfully, reads to "new", an audit event.
    """
    switches = Switches(ledger.connection)
    if switches.reads_are_new() and ledger.latest("reads_switched"):
        return
    _judge(ledger, warehouse, settings)
    rechecked = verify_changes(ledger, warehouse, settings)
    everywhere = replicas.wait_for_all(ledger, warehouse)
    with ledger.transaction():
        certificate = _judge(ledger, warehouse, settings)
        switches.change(_left_at(ledger), Status.COMPLETED_SUCCESSFULLY, progress=100)
        switches.set_reads("new")
        ledger.record("reads_switched", **certificate, rechecked=rechecked, replicas=everywhere)


def _left_at(ledger: Ledger) -> Status:
    """Errored where this run was reported as failed, before somebody cleared its failed tasks and it went on."""
    run = ledger.current_run()
    return Status.ERRORED if run and run.outcome == FAILED else Status.STARTING


def old_writes_end(ledger: Ledger, settings: Settings) -> datetime:
    """When no reader may use the old table any more. Raises GateError where reads are not on the new table."""
    row = Switches(ledger.connection).row()
    if row is None or row.status != Status.COMPLETED_SUCCESSFULLY or row.finished_at is None:
        raise GateError(
            "Reads are not on the new table (any more), so old writes go on. Nothing was changed. If this was a "
            "rollback, all is well; to migrate again, trigger a new run."
        )
    return row.finished_at + timedelta(seconds=settings.read_cache_seconds)


def stop_old_writes(ledger: Ledger) -> None:
    switches = Switches(ledger.connection)
    with ledger.transaction():
        switches.change(Status.COMPLETED_SUCCESSFULLY, Status.COMPLETED_SUCCESSFULLY)
        switches.set_writes("new")
        ledger.record("old_writes_stopped", by_the_application=not switches.has_settings)


def roll_back(ledger: Ledger) -> str:
    """Reads to the old table at once; writes go on to both. Raises RollbackError where old writes have stopped."""
    switches = Switches(ledger.connection)
    row = switches.row()
    if row is None or row.status != Status.COMPLETED_SUCCESSFULLY:
        status = Status(row.status).name if row else "missing"
        return f"Reads are on the old table already (the migration row is {status}); there is nothing to roll back."
    if not switches.has_settings:
        raise RollbackError(
            "This release of PostHog stops writing the old table by itself once the migration is complete, so the "
            "old table lacks what came since, and reading it would lose updates. Nothing was changed. To go back, "
            "restore the old table from Postgres first."
        )
    if switches.writes() != "both":
        raise RollbackError(
            "Old writes have stopped (PERSON_DISTINCT_ID_WRITES is "
            f"{switches.writes()!r}), so the old table lacks what came since, and reading it would lose updates. "
            "Nothing was changed. The new table agrees with Postgres: stay on it. To be able to go back next time, "
            "run the migration with stop_old_writes off."
        )
    ledger.create()
    with ledger.transaction():
        ledger.claim({})
        switches.change(Status.COMPLETED_SUCCESSFULLY, Status.ROLLED_BACK)
        switches.set_reads("old")
        ledger.record("rolled_back")
        ledger.end_run("rolled back")
    return (
        "Reads are back on the old table, and both tables are written. PostHog's processes that saw the migration "
        "complete remember it until they are restarted: restart them now."
    )
