"""The gate before the switch, and the switch itself. Only the ledger says what is proven about a team."""

from contextlib import suppress
from dataclasses import asdict
from typing import Any

from pdi2.core.cluster import replicas
from pdi2.core.cluster.ours import states
from pdi2.core.cluster.pressure import patiently, refuse_while_paused
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import BusyError, MigrationError, WaitError
from pdi2.core.plan import cluster_checks, mutations
from pdi2.core.plan.clickhouse_checks import table_problems
from pdi2.core.plan.planning import chosen, known
from pdi2.core.state.ledger import FAILED, REJECTED, Ledger, Team, TeamStatus
from pdi2.core.state.settings import Settings
from pdi2.core.state.switches import Status, Switches
from pdi2.core.state.words import are, counted
from pdi2.core.switch import proof
from pdi2.core.verify.verifying import verify_changes

LISTED = 20
PUT_OFF = "switch_put_off"
CHECK = "Check the consumer of person_distinct_id2."
GOES_ON = "The run goes on by itself once a new link reaches both tables."
CHANGED = (
    "Somebody removed or changed rows of person_distinct_id2 while it was compared for the switch: by a mutation, or "
    "by dropping or detaching a part. Reads stay on the old table. The run goes on by itself: it compares again."
)


class GateError(MigrationError):
    """Something is not proven, so nothing is switched."""


class NoPlanError(GateError):
    """There is nothing to certify, because of a failure that another task reports."""


def certify(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> dict[str, Any]:
    """Checks that every team that exists now is verified in the ledger. Raises GateError with those that are not."""
    certificate = _judge(ledger, warehouse, settings)
    certificate["replicas"] = [asdict(one) for one in replicas.survey(warehouse)]
    ledger.record("certified", **certificate, trial=settings.team_ids is not None)
    return certificate


def _judge(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> dict[str, Any]:
    if ledger.latest_of_run("planned") is None:
        raise NoPlanError("This run made no plan, so there is nothing to certify. See the first task that failed.")
    switched = Switches(ledger.connection).reads_are_new()
    if not switched:  # else it was checked, and old writes may have ended since
        _check_dual_writes(ledger)
        _check_tables(warehouse)
    teams = {team.team_id: team for team in ledger.teams()}
    wanted = list(chosen(known(ledger, warehouse), settings))
    if switched:  # a newer team is in the new table from its start
        wanted = [team_id for team_id in wanted if team_id in teams]
    missing = [reason for team_id in wanted if (reason := not_verified(team_id, teams.get(team_id)))]
    if missing:
        more = f"\n  and {len(missing) - LISTED:,} more" if len(missing) > LISTED else ""
        raise GateError(
            f"{len(missing):,} of {counted(len(wanted), 'team')} {are(len(missing))} not verified, so nothing is "
            "switched:\n  "
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


def _check_dual_writes(ledger: Ledger) -> None:
    """Checks the dual write itself: repairs can make a table look right that no longer receives new links."""
    switches = Switches(ledger.connection)
    if not switches.both_are_written():
        raise GateError(
            "The application no longer writes both tables (PERSON_DISTINCT_ID_WRITES is "
            f"{switches.writes() or 'not set'}), so one of them misses what comes next. "
            "Reads stay on the old table, and what is copied is kept. Find out who changed the setting (an "
            "administrator, a restore, an upgrade of PostHog), and trigger a new run: it turns the dual write on, "
            "proves it, and verifies every team again."
        )
    if not ledger.standing("dual_writes_proven", "dual_writes_enabled", "dual_writes_missed", of_run=True):
        raise GateError(
            "The ledger has no proof of the dual write in this run (a task that is marked by hand proves nothing), so "
            "some writer may leave the new table out. Reads stay on the old table, and what is done is kept. Clear the "
            "task prove_dual_writes and what follows it, or trigger a new run: it does only what is missing."
        )


def _check_tables(warehouse: Warehouse) -> None:
    """Checks once more what preflight has: a TTL may have come, or another table on one of the replicas.

    A table that is being restarted is not shown for a while, and a replica is dropped from one table after the other.
    """
    problems: list[str] = []

    def look() -> str | None:
        problems[:] = table_problems(warehouse) or cluster_checks.unequal_replicas(states(warehouse))
        return " ".join(problems) or None

    with suppress(WaitError):
        patiently(look, "The switch")
    if problems:
        raise GateError(
            "Somebody changed a table since preflight, so nothing is switched:\n  "
            + "\n  ".join(problems)
            + "\nWhat is done is kept. Remove the cause and trigger the run again: it does only what is missing."
        )


def not_verified(team_id: int, team: Team | None) -> str | None:
    """Why a team keeps the gate shut; None if it does not."""
    if team is None:
        return f"team {team_id}: appeared after the plan"
    if team.status == TeamStatus.VERIFIED:
        return None
    return f"team {team_id}: {team.status}" + (f" ({team.error})" if team.error else "")


def switch_reads(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> None:
    """Compares and repairs what changed since the teams were verified, waits for all replicas, and switches reads.

    The switch is one transaction: it checks the gate once more, sets the row to CompletedSuccessfully and reads to
    "new", and records an event. Raises GateError if a team is not verified, a required approval is missing, somebody
    ended the dual write or changed a table, or the run is a trial. Raises BusyError if somebody's mutation of the new
    table fails, and WaitError if one is unfinished, rows were removed meanwhile, a link was missed, replicas lag or the
    migration is paused. Raises ChangedElsewhereError if somebody else changed the row.
    """
    refuse_trials(settings)
    switches = Switches(ledger.connection)
    if _switched(ledger, switches):
        ledger.switch_committed()
        return
    left = _left_at(ledger, switches)  # if a report says meanwhile that the run failed, this try must not switch
    if switches.reads_are_new():
        switches.change(left, left)  # raises: somebody else completed the row, and nobody was asked for an approval
    try:
        refuse_while_paused(ledger, "The switch of reads")
        _check_approval(ledger, settings)
        _judge(ledger, warehouse, settings)
        _wait_for_mutations(ledger, warehouse)
    except WaitError:
        replicas.end_wait(ledger)
        raise
    missed = proof.missed(ledger, warehouse, settings)  # before the recheck repairs it
    parts, mutation = replicas.parts_of(warehouse), mutations.last_seen(ledger)
    rechecked = verify_changes(ledger, warehouse, settings)
    if missed:
        replicas.end_wait(ledger)
    safe = "Reads stay on the old table, and what was missed is repaired."
    wait_if(ledger, missed and f"{missed} {safe} {CHECK} {GOES_ON}")
    everywhere = replicas.wait_for_all(ledger, warehouse)
    _wait_for_mutations(ledger, warehouse)
    if replicas.lacking(parts, replicas.parts_of(warehouse)):
        ledger.record(mutations.REMOVED)  # every team is compared as a whole: there may be as many rows as ids still
    wait_if(ledger, None if mutations.last_seen(ledger) == mutation else CHANGED)
    with ledger.transaction():
        certificate = _judge(ledger, warehouse, settings)
        ledger.hold_events()
        if not _switched(ledger, switches):  # by another try of this task, of which Airflow has lost sight
            _check_approval(ledger, settings)
            refuse_while_paused(ledger, "The switch of reads")
            switches.change(left, Status.COMPLETED_SUCCESSFULLY, progress=100)
            switches.set_reads("new")
            ledger.record("reads_switched", **certificate, rechecked=rechecked, replicas=everywhere)
    ledger.switch_committed()


def _switched(ledger: Ledger, switches: Switches) -> bool:
    """Whether this project has switched reads."""
    row = switches.row()
    return row is not None and row.status == Status.COMPLETED_SUCCESSFULLY and ledger.switched(row.finished_at)


def refuse_trials(settings: Settings) -> None:
    """In a trial or a dry run these tasks are skipped, unless somebody clears them or runs them by hand."""
    if settings.dry_run or settings.team_ids is not None:
        raise GateError(
            f"This run is a {'dry run' if settings.dry_run else 'trial of single teams'}, which switches nothing, not "
            "even if this task is run by hand. Reads and writes stay as they are. To go on, trigger the DAG without "
            "dry_run and team_ids: it does only what is missing."
        )


def _wait_for_mutations(ledger: Ledger, warehouse: Warehouse) -> None:
    """No comparison sees what somebody's mutation has yet to remove. ClickHouse retries one that fails."""
    found = mutations.somebodys(ledger, warehouse)
    if failing := mutations.failing(found):
        raise BusyError(
            "A mutation of person_distinct_id2 fails, and may yet change what is verified. Reads stay on the old "
            f"table. {' '.join(failing)} If this run has given up meanwhile, trigger it again: what the mutation may "
            "have changed is compared, and then reads are switched."
        )
    if busy := mutations.unfinished(found):
        wait_if(ledger, busy)


def wait_if(ledger: Ledger, reason: str | None, what: str = PUT_OFF) -> None:
    """Raises WaitError if there is a reason to wait."""
    note(ledger, reason, what)
    if reason:
        raise WaitError(reason)


def note(ledger: Ledger, reason: str | None, what: str) -> None:
    """Records when the reason to wait changes, and when it has gone."""
    if reason != (ledger.latest_of_run(what) or {}).get("reason"):
        ledger.record(what, reason=reason)


def _check_approval(ledger: Ledger, settings: Settings) -> None:
    """The certificate must come from this run, and the approval must be for that certificate."""
    if not settings.require_approval:
        return
    if not ledger.latest_of_run("certified") or ledger.approval().what != "switch_approved":
        raise GateError(
            "This run requires an approval, and the ledger has none for what this run certified (a task that is "
            "marked by hand approves nothing). Reads stay on the old table. Clear the task certify and what follows "
            "it, then approve the switch in Airflow."
        )


def _left_at(ledger: Ledger, switches: Switches) -> Status:
    """The status that this run left the row in: Errored if it was reported as failed or rejected and went on after its
    tasks were cleared, else Starting. If somebody else set the row to Errored, this run must not change it."""
    run, row = ledger.current_run(), switches.row()
    elsewhere = row and row.status == Status.ERRORED and not switches.left_by_us(row)
    return Status.ERRORED if run and run.outcome in (FAILED, REJECTED) and not elsewhere else Status.STARTING
