"""Ends a run: reads its outcome from the ledger, and records it where PostHog's administrators and ours look."""

from typing import Any

from tabulate import tabulate

from pdi2.core.engines.failures import MigrationError
from pdi2.core.report.telling import by_kind
from pdi2.core.report.way_back import way_back
from pdi2.core.state.ledger import FAILED, REJECTED, TRIAL_PASSED, Event, Ledger, Team, TeamStatus
from pdi2.core.state.ownership import is_owner
from pdi2.core.state.settings import Settings
from pdi2.core.state.switches import ChangedElsewhereError, Status, Switches
from pdi2.core.state.words import are, counted
from pdi2.core.switch.gate import not_verified

LARGEST = 30
ELSEWHERE = (
    "Reads are on the new table, and not by this run: somebody else completed PostHog's migration row (PostHog's own "
    "runner, or an administrator), so readers use what nobody certified. Trigger audit_person_distinct_id2: it "
    'compares every team with Postgres, and with {"repair": true} repairs the new table.'
)


class UnfinishedError(MigrationError):
    """The run ended before it did what it was triggered for, and would be green."""


def close_run(ledger: Ledger, settings: Settings) -> dict[str, Any]:
    """Ends the run and returns its facts. If it failed, marks the migration row Errored with the reason."""
    switches = Switches(ledger.connection)
    row = switches.row()
    teams = ledger.teams()
    ends = settings.stop_old_writes and not switches.reads_are_new()  # what has not ended them by now, will not
    outcome = _outcome(ledger, settings, row.status if row else None)
    elsewhere = outcome != "completed" and switches.reads_are_new()
    if outcome in (FAILED, REJECTED) and row and switches.left_by_us(row):  # Errored: its tasks were cleared since
        _mark_failed(ledger, switches, Status(row.status), teams)
    facts = {
        "outcome": outcome,
        "teams": len(teams),
        "verified": sum(team.status == TeamStatus.VERIFIED for team in teams),
        "rows_source": sum(team.rows_source for team in teams),
        "rows_copied": sum(team.rows_copied for team in teams),
        "slices": sum(team.slices_done for team in teams),
        "copy_seconds": sum(team.copy_seconds for team in teams),
        "peak_memory": max((team.peak_memory or 0 for team in teams), default=0),
        "old_differs": sum(team.old_differs or 0 for team in teams),
        "tombstones": sum(team.tombstones or 0 for team in teams),
        "findings": ledger.findings_by_kind(),
        "reads": ELSEWHERE if elsewhere else f"Reads are on the {'new' if outcome == 'completed' else 'old'} table.",
        "way_back": way_back(ledger, ends, settings.read_cache_seconds).text,
    }
    ledger.record("report", **facts)
    ledger.end_run(outcome)
    return facts


def got_through(ledger: Ledger, settings: Settings) -> bool:
    """Whether the run achieved what its settings ask for, or a person rejected the switch."""
    switches = Switches(ledger.connection)
    row = switches.row()
    if row and row.status == Status.COMPLETED_SUCCESSFULLY and ledger.switched(row.finished_at):
        return not (settings.stop_old_writes and switches.old_is_written())
    return is_owner(ledger) and _outcome(ledger, settings, None) != FAILED


def _outcome(ledger: Ledger, settings: Settings, status: int | None) -> str:
    if status == Status.COMPLETED_SUCCESSFULLY and ledger.latest_of_run("reads_switched"):
        return "completed"
    if any(team.status != TeamStatus.VERIFIED for team in ledger.teams(settings.team_ids)):
        return FAILED  # since then, if somebody cleared a task of a team
    if _rejection(ledger):
        return REJECTED
    return TRIAL_PASSED if settings.team_ids and ledger.latest_of_run("certified") else FAILED


def _rejection(ledger: Ledger) -> Event | None:
    """The rejection of the switch, unless somebody was asked again since."""
    return ledger.standing("switch_rejected", "approval_asked", "switch_approved", of_run=True)


def _mark_failed(ledger: Ledger, switches: Switches, seen: Status, teams: list[Team]) -> None:
    failure, rejected = ledger.latest_of_run("task_failed"), _rejection(ledger)
    missing = [why for team in teams if (why := not_verified(team.team_id, team))]
    if failure and failure["task"].startswith("team.") and not missing:  # a later try got through
        failure = None
    lines = [failure["error"] if failure else "The run ended before the switch, and no task said why: see its logs."]
    if missing:  # first, because the column may be short; these lines include the reason
        told = f"{len(missing):,} of {counted(len(teams), 'team')} {are(len(missing))} not verified:"
        lines = [told, *missing[:20], *lines]
    elif rejected:
        lines = [
            f"{rejected.detail['by']} rejected the switch. Reads stay on the old table, and what is verified is kept. "
            "Trigger the run again to be asked again."
        ]
    reason = "\n".join(lines)
    if seen == Status.ERRORED and (ledger.latest_of_run("marked_errored") or {}).get("reason") == reason:
        return
    try:
        with ledger.transaction():
            switches.fail(seen, reason)
            ledger.record("marked_errored", reason=reason)
    except ChangedElsewhereError as error:
        ledger.record("not_marked_errored", reason=str(error))


def text(facts: dict[str, Any], teams: list[Team]) -> str:
    """The report as a person reads it: totals first, then the largest teams and every team that failed."""
    peak = f"{facts['peak_memory'] / 1e6:,.0f} MB" if facts["peak_memory"] else "not measured"
    listed = [
        {
            "team": team.team_id,
            "status": team.status,
            "rows": team.rows_source,
            "copied": team.rows_copied,
            "slices": team.slices_done,
            "tries": team.attempts,
            "seconds": round(team.copy_seconds, 1),
            "peak MB": round(team.peak_memory / 1e6) if team.peak_memory else None,
            "error": team.error,
        }
        for number, team in enumerate(teams)
        if number < LARGEST or team.status == TeamStatus.FAILED
    ]
    return "\n".join(
        [
            f"Outcome: {facts['outcome']}",
            f"Teams: {facts['verified']:,} of {facts['teams']:,} verified",
            f"Rows: {facts['rows_source']:,} in the old table, {facts['rows_copied']:,} copied",
            f"Copy: {counted(facts['slices'], 'slice')}, {facts['copy_seconds']:.1f} s of ClickHouse, "
            f"peak memory {peak}",
            f"The old table's reader was wrong for about {counted(facts['old_differs'], 'id')}",
            f"The application's tombstones for ids that Postgres does not have: {facts['tombstones']:,}, left in place",
            *(f"Findings, {kind}: {counts}" for kind, counts in by_kind(facts["findings"]).items()),
            facts["reads"],
            facts["way_back"],
            "",
            tabulate(listed, headers="keys", intfmt=","),
        ]
    )
