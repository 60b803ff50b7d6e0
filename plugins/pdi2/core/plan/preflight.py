"""Checks everything that must hold before a migration may begin. Changes nothing, and reports all problems at once."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import psycopg
from clickhouse_connect.driver.exceptions import ClickHouseError
from psycopg import Connection

from pdi2.core.cluster import pressure
from pdi2.core.engines import postgres
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import BusyError, MigrationError, Reaction, describe, reaction, visible
from pdi2.core.plan import clickhouse_checks, cluster_checks, mutations, postgres_checks
from pdi2.core.plan.planning import rows_by_team
from pdi2.core.state.ledger import TRIAL_PASSED, Ledger, TeamStatus
from pdi2.core.state.ownership import AT_WORK, held_by, try_lock
from pdi2.core.state.settings import Settings
from pdi2.core.state.switches import NAME, Status, Switches
from pdi2.core.state.words import counted

DEPENDENCY = "0002_events_sample_by"
"""The migration that PostHog's runner wants complete before it begins this one (posthog/async_migrations/runner.py)."""

SWITCH_TABLES = {"posthog_asyncmigration", "posthog_instancesetting"}
"""The tables that tell whether anything is left to do."""
DECIDED_ANEW = ("run_started", "switch_approved")
"""What ends a rollback or a rejection: a run that began after it, or an approval of the run that had been rejected."""


class PreflightError(MigrationError):
    """The migration cannot begin; `problems` has one sentence and its next step for each reason."""

    def __init__(self, problems: list[str]) -> None:
        listed = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
        super().__init__(
            f"The migration cannot begin, for {counted(len(problems), 'reason')}; nothing was changed.\n{listed}"
        )
        self.problems = problems


class Verdict(StrEnum):
    """What is left to do."""

    MIGRATE = "migrate"
    PLAN_ONLY = "plan only"
    STOP_OLD_WRITES = "stop old writes"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Preflight:
    verdict: Verdict
    message: str


def decision_against(ledger: Ledger, settings: Settings, triggered_at: datetime | None) -> list[str]:
    """A problem if somebody rolled back, or rejected the switch, since a person triggered this run: it was waiting for
    its turn then. `triggered_at` is None if a schedule triggered the run, which is no person's decision."""
    decided = ledger.newest("rolled_back", "switch_rejected", *DECIDED_ANEW) if ledger.exists() else None
    if decided is None or decided.what in DECIDED_ANEW or (triggered_at and triggered_at > decided.at):
        return []
    if decided.what == "switch_rejected" and settings.require_approval:  # somebody will be asked again
        return []
    did = "returned reads to the old table" if decided.what == "rolled_back" else "rejected the switch"
    return [
        f"{decided.detail.get('by', decided.actor)} {did} at {decided.at:%Y-%m-%d %H:%M:%S %Z}, and this run was "
        f"triggered by {'a person before that' if triggered_at else 'no person'}, so it does not undo it. To migrate "
        "all the same, trigger the DAG by hand."
    ]


def check(ledger: Ledger | None, warehouse: Warehouse | None, settings: Settings, found: list[str]) -> Preflight:
    """Checks whichever database could be reached; `found` holds the problems of connecting to them.

    Raises PreflightError with all problems, or BusyError if another run or a mutation of the new table is running.
    """
    problems = list(found)
    try:
        return _checked(ledger, warehouse, settings, problems)
    except ClickHouseError as error:
        if reaction(error) is not Reaction.FAIL:
            raise
        problems.append(
            f"ClickHouse does not let this user read its tables: {describe(error)}. Grant what docs/runbook.md lists."
        )
        raise PreflightError(problems) from error


def _checked(ledger: Ledger | None, warehouse: Warehouse | None, settings: Settings, problems: list[str]) -> Preflight:
    """Adds to `problems`, which already has those of connecting."""
    unreached = bool(problems)
    unwritable: list[str] = []
    if warehouse and (forbidden := clickhouse_checks.profile_problems(warehouse, settings.max_memory_usage)):
        problems += forbidden
        warehouse = None
    if warehouse:
        problems += (tables := clickhouse_checks.table_problems(warehouse))
        if not tables:
            problems += [] if settings.dry_run else clickhouse_checks.grant_problems(warehouse)
            problems += mutations.failing(mutations.listed(warehouse)) + cluster_checks.problems(warehouse)
    if ledger:
        problems += postgres_checks.server_problems(ledger.connection)
        problems += (unwritable := [] if settings.dry_run else postgres_checks.read_only(ledger.connection))
        problems += (application := postgres_checks.application_problems(ledger.connection))
        problems += (privileges := postgres_checks.privilege_problems(ledger.connection))
        problems += (hidden := postgres_checks.row_security_problems(ledger.connection)).values()
    if not ledger or not warehouse or unreached or application or privileges or SWITCH_TABLES & hidden.keys():
        raise PreflightError(problems)
    ended = _already_ended(ledger, warehouse, settings)
    if ended and (ended.verdict is Verdict.NOTHING or not (unwritable or hidden)):
        return ended
    if hidden:
        raise PreflightError(problems)
    if not tables:
        problems += _team_problems(ledger.connection, warehouse, settings)
        problems += clickhouse_checks.disk_problems(warehouse, _rows_copied(ledger))
        if not settings.dry_run:
            pressure.look(warehouse)  # whatever it says: a grant that the copy would lack shows here
    problems += postgres_checks.tombstone_problems(ledger.connection)
    problems += _switch_problems(ledger)
    if problems:
        raise PreflightError(problems)
    if not try_lock(ledger):  # held for this statement alone
        raise BusyError(AT_WORK + held_by(ledger))
    if not settings.dry_run and (refused := _refused(ledger)):
        raise PreflightError(refused)
    notes = _notes(ledger, warehouse, settings)
    if settings.dry_run:
        return Preflight(Verdict.PLAN_ONLY, "\n".join(["All checks passed. Dry run: only the plan follows.", *notes]))
    if busy := mutations.unfinished(mutations.listed(warehouse)):
        raise BusyError(busy)
    return Preflight(Verdict.MIGRATE, "\n".join(["All checks passed.", *notes]))


def _notes(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> list[str]:
    """What people should know, although it does not stop the run."""
    notes = []
    if settings.dry_run:
        notes += postgres_checks.read_only(ledger.connection) + clickhouse_checks.grant_problems(warehouse)
    notes += postgres_checks.open_schemas(ledger.connection)
    before = Switches(ledger.connection).row(DEPENDENCY)
    if before and before.status != Status.COMPLETED_SUCCESSFULLY:
        notes.append(
            f"{DEPENDENCY} is not complete (status {before.status}). It concerns the table events alone, so this "
            "migration goes on. PostHog's next upgrade needs it, and PostHog 1.33 runs it on ClickHouse 21.6 alone: "
            "see docs/runbook.md before you upgrade PostHog."
        )
    for (views,) in warehouse.rows("views_of_new"):
        notes.append(
            f"Materialized views read person_distinct_id2: {views.decode()}. Most of what is copied comes as whole "
            "parts, which no view sees, so fill them anew after the migration if they should have it."
        )
    return notes


def _already_ended(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> Preflight | None:
    skip = [f"{table.decode()}.{column.decode()}" for table, column in warehouse.rows("skip_comment")]
    if skip:
        return Preflight(
            Verdict.NOTHING, f"This instance does not need the migration: {skip[0]} carries the skip comment."
        )
    switches = Switches(ledger.connection)
    row = switches.row()
    if row is None or row.status != Status.COMPLETED_SUCCESSFULLY:
        return None
    if not ledger.switched(row.finished_at):
        return Preflight(
            Verdict.NOTHING,
            f"The row {NAME} was completed by somebody else (PostHog's own runner, or an administrator), unverified, "
            "or the ledger of our switch is lost: readers use the new table, and nothing proves that it agrees with "
            "Postgres. Nothing was changed. Trigger audit_person_distinct_id2: it compares every team, and with "
            '{"repair": true} repairs the new table.',
        )
    if set_back := switches.set_back():
        raise PreflightError([set_back])
    trial = settings.dry_run or settings.team_ids is not None
    if switches.writes() == "both" and settings.stop_old_writes and not trial:
        return Preflight(Verdict.STOP_OLD_WRITES, "Reads are switched already; stopping old writes is what is left.")
    return Preflight(Verdict.NOTHING, "The migration is complete already; there is nothing to do.")


def _switch_problems(ledger: Ledger) -> list[str]:
    switches = Switches(ledger.connection)
    row = switches.row()
    problems = []
    if row and row.status == Status.RUNNING:
        problems.append(
            f"PostHog's own runner is running {NAME} (status Running). Stop it on PostHog's page for "
            "async migrations, then trigger this run again."
        )
    run = ledger.current_run()
    ours = run and run.outcome in (None, TRIAL_PASSED)  # of a run that died, or of a trial
    if row and row.status == Status.STARTING and not ours:
        problems.append(
            f"The row {NAME} is Starting, and the ledger has no run that left it so: PostHog's own runner may be about "
            "to begin, or the ledger is lost. Once none of PostHog's workers has it, set the row's status to 4 (rolled "
            "back; at 0 PostHog may start it again), then trigger this run again."
        )
    if switches.writes() == "new":
        problems.append(
            "The application already writes the new table only, though the migration is not complete: the old "
            'table lacks what came since. Set PERSON_DISTINCT_ID_WRITES to "both" and see docs/runbook.md.'
        )
    return problems


def _refused(ledger: Ledger) -> list[str]:
    """Why Postgres would refuse what the run does, for reasons that no list of ours has: triggers, event triggers,
    tablespaces, columns and types that we do not know. So it is tried, and taken back."""
    try:
        with ledger.connection.transaction(force_rollback=True):
            ledger.create()
            Switches(ledger.connection).try_out()
            postgres.execute(ledger.connection, "truth_digest", {"team_ids": [], "mask": 0})
    except psycopg.Error as error:
        if reaction(error) is not Reaction.FAIL:
            raise
        where = visible("; ".join((error.diag.context or "").splitlines()))
        return [
            f"Postgres refuses what this migration would do, as a trial that was taken back has shown: "
            f"{describe(error)}{f' ({where})' if where else ''}. Remove the cause: a right that the Postgres role, a "
            "trigger or an event trigger lacks, or a column or type that this project does not know."
        ]
    return []


def _rows_copied(ledger: Ledger) -> int:
    """How many rows of the old table earlier runs have copied."""
    teams = ledger.teams() if ledger.exists() else []
    return sum(team.rows_source for team in teams if team.status in (TeamStatus.COPIED, TeamStatus.VERIFIED))


def _team_problems(connection: Connection[Any], warehouse: Warehouse, settings: Settings) -> list[str]:
    known = rows_by_team(connection, warehouse)
    return [
        f"team_ids names team {team_id}, which has no row in ClickHouse or Postgres. Trigger the run again without it."
        for team_id in settings.team_ids or ()
        if team_id not in known
    ]
