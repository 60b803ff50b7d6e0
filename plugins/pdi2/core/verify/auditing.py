"""The audit: the same comparison as `verify`, at any time. It reports drift, and repairs it only if told to.

It claims no run, holds no lock and changes no team's status, so an audit and a migration may run at the same time.
Before the switch it looks only at verified teams and repairs nothing, because the migration does that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pdi2.core.cluster.replicas import behind
from pdi2.core.engines import postgres
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import MigrationError
from pdi2.core.plan.planning import Batch, chosen, rows_by_team, share_out
from pdi2.core.plan.postgres_checks import tombstone_problems
from pdi2.core.state.ledger import Ledger, TeamStatus
from pdi2.core.state.settings import Settings
from pdi2.core.state.slices import Teams, grouped
from pdi2.core.state.switches import Switches
from pdi2.core.verify.comparing import Kind
from pdi2.core.verify.verifying import compare

LISTED = 20
BY_DELETIONS = {Kind.RESURRECTED, Kind.AHEAD}
"""What is found if deletions do not reach ClickHouse. PostHog up to 1.33 deletes a person in Postgres alone
(posthog/models/person.py), and an id that comes back begins at version 0 again."""


class AuditError(MigrationError):
    """The audit may not do what it was asked for, or could not compare every team."""


class DriftError(MigrationError):
    """The new table and Postgres have drifted apart."""


@dataclass(frozen=True)
class Audit:
    """What the ledger knows about one audit. `findings`: by kind, how many ids are repaired and how many remain.

    `every` says whether no teams were named, `since` when it chose its teams, `behind` which replicas lacked parts
    then, because one replica is compared.
    """

    planned: set[int]
    every: bool
    compared: set[int]
    old_differs: int | None
    findings: dict[str, dict[str, int]]
    since: datetime
    behind: list[str]

    @property
    def drift(self) -> int:
        """The number of ids that are wrong."""
        return sum(count["remaining"] for count in self.findings.values())


def plan(ledger: Ledger, warehouse: Warehouse, settings: Settings, most_batches: int) -> list[Batch]:
    """Chooses the teams to compare, and records them. Raises AuditError if it may not compare a team that is named, or
    if a repair is asked for before the switch."""
    _check_repair(ledger, settings)
    ledger.create()
    rows = rows_by_team(ledger.connection, warehouse, "teams_of_new")
    if not Switches(ledger.connection).reads_are_new():
        verified = {team.team_id for team in ledger.teams() if team.status == TeamStatus.VERIFIED}
        rows = {team_id: count for team_id, count in rows.items() if team_id in verified}
    if strange := set(settings.team_ids or ()) - set(rows):
        raise AuditError(
            f"team_ids names what cannot be compared: {', '.join(map(str, sorted(strange)))}. The new table and "
            "Postgres have no row of these teams or, before the switch, they are not verified. The audit compared "
            "nothing. Trigger it again without them."
        )
    rows = chosen(rows, settings)
    ledger.record(
        "audit_planned",
        run=ledger.airflow_run,
        team_ids=list(rows),
        every=settings.team_ids is None,
        repair=settings.repair,
        behind=behind(warehouse),
    )
    return share_out(rows, most_batches)


def left(ledger: Ledger, team_ids: list[int]) -> list[int]:
    """The teams that this audit has not compared yet: a task that waited, or failed, goes on where it was."""
    compared = _of_run(ledger).compared
    return [team_id for team_id in team_ids if team_id not in compared]


def groups(warehouse: Warehouse, team_ids: list[int]) -> list[Teams]:
    """The teams as they are compared: small teams together, each other team by itself."""
    rows = dict.fromkeys(team_ids, 0) | dict(warehouse.rows("new_rows", {"team_ids": team_ids}))
    return grouped(rows, warehouse.max_memory_usage)


def audit(ledger: Ledger, warehouse: Warehouse, teams: Teams, settings: Settings) -> dict[int, int | None]:
    """Compares teams, and records the findings in the ledger.

    Returns, by team, for how many ids the old table's reader is wrong; None if the old table is no longer written.
    """
    _check_repair(ledger, settings)
    began = ledger.clock()
    old_differs = compare(ledger, warehouse, teams, settings).old_differs
    # What is still wrong was found again, or repaired just now.
    ledger.settle_findings(teams.team_ids, found_before=began)
    return {team_id: None if old_differs is None else old_differs[team_id] for team_id in teams.team_ids}


def record(ledger: Ledger, old_differs: Mapping[int, int | None]) -> None:
    """Records the teams that were compared, for `judge`."""
    counted = [count for count in old_differs.values() if count is not None]
    ledger.record(
        "audited", run=ledger.airflow_run, team_ids=list(old_differs), old_differs=sum(counted) if counted else None
    )


def judge(ledger: Ledger, red: bool = False) -> tuple[Audit, str]:
    """The audit, and what to say of it. Records whether ids are wrong. `red`: a task of it has failed.

    Raises DriftError if ids are wrong, AuditError if teams were not compared.
    """
    audit = _of_run(ledger)
    told = "\n".join([_compared(ledger, audit), *_findings(audit), *audit.behind])
    if audit.drift:
        ledger.record("drift_found", run=ledger.airflow_run, teams=len(audit.compared), ids=audit.drift)
        raise DriftError(f"{told}\n{_what_to_do(ledger, audit)}")
    if missing := sorted(audit.planned - audit.compared):
        raise AuditError(
            f"{told}\nTeams that were not compared: {len(missing):,} of {len(audit.planned):,}, among them "
            f"{', '.join(map(str, missing[:LISTED]))}: the tasks that failed say why. "
            "Clear those tasks, or trigger the audit again."
        )
    if red:  # somebody cleared it, and the ledger has what it compared before
        raise AuditError(
            f"{told}\nThat is what this audit found until a task of it failed: its log says why. Clear that task, or "
            "trigger the audit again."
        )
    if audit.every and Switches(ledger.connection).reads_are_new():
        ledger.settle_findings(None, found_before=audit.since)  # of teams that are in neither database any more
    ledger.record(
        "no_drift", run=ledger.airflow_run, teams=len(audit.compared), every=audit.every, since=audit.since.isoformat()
    )
    return audit, told


def _check_repair(ledger: Ledger, settings: Settings) -> None:
    for problem in tombstone_problems(ledger.connection):  # a repair would bring deleted ids back
        raise AuditError(f"{problem} The audit compared nothing and changed nothing.")
    if settings.repair and not Switches(ledger.connection).reads_are_new():
        raise AuditError(
            "Reads are on the old table, and until they are switched only the migration repairs the new one. Nothing "
            "was changed. Trigger the audit without repair, or fill_person_distinct_id2: it verifies and repairs."
        )


def _of_run(ledger: Ledger) -> Audit:
    events: list[tuple[str, Any, dict[str, Any]]] = []
    if ledger.exists():
        events = postgres.execute(ledger.connection, "audit_events", {"run": ledger.airflow_run}).fetchall()
    begun = max((number for number, (what, *_) in enumerate(events) if what == "audit_planned"), default=None)
    if begun is None:
        raise AuditError("This audit never chose its teams, so nothing was compared. See the first task that failed.")
    (_, since, planned), *done = events[begun:]
    newest = {tuple(detail["team_ids"]): detail["old_differs"] for _, _, detail in done}  # if a task was cleared
    counted = [count for count in newest.values() if count is not None]
    return Audit(
        planned=set(planned["team_ids"]),
        every=planned.get("every", False),  # of an earlier release
        compared={team_id for _, _, detail in done for team_id in detail["team_ids"]},
        old_differs=sum(counted) if counted else None,
        findings=ledger.findings_by_kind(planned["team_ids"], since),
        since=since,
        behind=planned.get("behind", []),
    )


def _compared(ledger: Ledger, audit: Audit) -> str:
    switches = Switches(ledger.connection)
    verified = "" if switches.reads_are_new() else " verified (reads are on the old table, so no others)"
    if not audit.planned:
        return f"There is no team to compare{verified}."
    told = f"Compared person_distinct_id2 with Postgres; teams: {len(audit.compared):,}{verified}."
    if not switches.old_is_written():
        return f"{told} The old table is no longer written."
    if audit.old_differs is None:
        return told
    return f"{told} Ids that the old table's reader gets wrong, which is not drift: about {audit.old_differs:,}."


def _findings(audit: Audit) -> list[str]:
    return [
        f"{kind.replace('_', ' ')}: {count['repaired']:,} repaired, {count['remaining']:,} open"
        for kind, count in audit.findings.items()
    ] or ["No id differs."]


def _what_to_do(ledger: Ledger, audit: Audit) -> str:
    left = {kind for kind, count in audit.findings.items() if count["remaining"]}
    cause = "Find out which writer or consumer of person_distinct_id2 loses rows"
    if left <= BY_DELETIONS:
        cause = (
            "Postgres has deleted these ids, or created them again. PostHog 1.31 to 1.33 does not tell ClickHouse, "
            f"so there the repair is all there is to do. On other releases: {cause[0].lower()}{cause[1:]}"
        )
    found = (
        f"Ids that drifted from Postgres: {audit.drift:,}. They are in pdi2_migration.finding, found_at "
        f"{audit.since.isoformat(sep=' ', timespec='seconds')} and later. Postgres is right, and nothing was lost "
        f"there. {cause}, "
    )
    if Switches(ledger.connection).reads_are_new():
        return f'{found}then trigger this audit with {{"repair": true}}. Until then those ids are answered wrongly.'
    return f"{found}then trigger fill_person_distinct_id2: it repairs before it switches. Reads are on the old table."
