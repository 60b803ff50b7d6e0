"""What the migration knows about itself, in the Postgres schema `pdi2_migration`.

Every step records here what it did, and every decision is based on it. Airflow's task states decide nothing, so to
clear, mark or retry a task only changes what work is left.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from psycopg import Connection, Cursor, Transaction
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pdi2.core.engines import postgres
from pdi2.core.engines.failures import MigrationError
from pdi2.core.engines.measuring import Cost
from pdi2.core.state.slices import Slice

T = TypeVar("T")
TRIAL_PASSED = "trial passed"
FAILED = "failed"
REJECTED = "rejected"
APPROVAL = ("certified", "approval_asked", "switch_approved", "switch_rejected", "reads_switched", "rolled_back")
"""The events that affect the approval of the switch."""


class TeamStatus(StrEnum):
    PLANNED = "planned"
    COPYING = "copying"
    COPIED = "copied"
    VERIFIED = "verified"
    FAILED = "failed"


@dataclass(frozen=True)
class Run:
    """A DAG run that claimed the migration; the one that claimed it last owns it."""

    id: int
    airflow_run: str
    actor: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    settings: dict[str, Any]


@dataclass(frozen=True)
class Team:
    """A team's row in the ledger. Memory is in bytes; rows_source counts rows of the old table."""

    team_id: int
    status: TeamStatus
    rows_source: int
    rows_copied: int
    slices_done: int
    range_rows: int | None
    memory_budget: int | None
    attempts: int
    copy_seconds: float
    peak_memory: int | None
    old_differs: int | None
    tombstones: int | None
    error: str | None


@dataclass(frozen=True)
class Event:
    """A line of the audit log."""

    at: datetime
    actor: str
    what: str
    detail: dict[str, Any]


@dataclass(frozen=True)
class Approval:
    """The name of the last event that affected the approval of the switch, and who approved or rejected it."""

    what: str
    by: str | None


class Ledger:
    """One connection (autocommit), acting for one Airflow run."""

    def __init__(self, connection: Connection[Any], airflow_run: str, actor: str) -> None:
        self.connection = connection
        self.airflow_run = airflow_run
        self.actor = actor

    def transaction(self) -> AbstractContextManager[Transaction]:
        return self.connection.transaction()

    def exists(self) -> bool:
        return bool(self._value("ledger_exists"))

    def create(self) -> None:
        """Creates the ledger, or adds what a ledger of an earlier release lacks."""
        if not self._value("ledger_is_current"):
            self._execute("ledger_create")

    def current_run(self) -> Run | None:
        """The run that owns the migration: the newest one."""
        return self._rows(Run, "run_current").fetchone() if self.exists() else None

    def end_run(self, outcome: str) -> None:
        """Ends this run, unless another one owns the migration by now."""
        self._execute("run_end", {"airflow_run": self.airflow_run, "outcome": outcome})

    def keep_certificate(self, files: Mapping[str, str]) -> None:
        """Keeps the current run's JSON file and page, for people who cannot read the place they were written to."""
        by_form = {name.rpartition(".")[2]: text for name, text in files.items()}
        name = next(iter(files)).rpartition(".")[0]
        self._execute("certificate_keep", {"name": name, **by_form})

    def record(self, what: str, **detail: Any) -> None:
        self._execute("event_add", {"actor": self.actor, "what": what, "detail": Jsonb(detail)})

    def switched(self, finished_at: datetime | None) -> bool:
        """Whether this project, and not somebody else, made the switch that the migration row records."""
        if finished_at is None or not self.exists():
            return False
        switch = self.standing("reads_switched", "rolled_back")
        return switch is not None and switch.at >= finished_at

    def old_table_lacks_writes(self) -> bool:
        """Whether this project has ever ended old writes, whatever the switches say now."""
        return self.exists() and self.newest("old_writes_stopped") is not None

    def clock(self) -> datetime:
        """Now by Postgres, the one clock that all tasks share."""
        now: datetime = self._value("clock")
        return now

    def switch_committed(self) -> datetime:
        """From when on every reader's next look finds the newest switch.

        This is recorded after the commit, by a statement of its own. The switch's own time is when its transaction
        began, which may have waited for locks or for a standby. If nothing was recorded yet, that is now.
        """
        if committed := self.standing("switch_committed", "reads_switched"):
            return committed.at
        self.record("switch_committed")
        return self.switch_committed()

    def newest(self, *names: str, of_run: bool = False) -> Event | None:
        """The newest event with one of these names; with `of_run`, since the current run began."""
        return self._rows(Event, "event_newest", {"names": list(names), "of_run": of_run}).fetchone()

    def standing(self, what: str, *ended_by: str, of_run: bool = False) -> Event | None:
        """The newest event with that name, unless one that ends it has come since."""
        event = self.newest(what, *ended_by, of_run=of_run)
        return event if event and event.what == what else None

    def latest(self, what: str) -> dict[str, Any] | None:
        """The detail of the newest event with that name."""
        event = self.newest(what)
        return event.detail if event else None

    def latest_of_run(self, what: str) -> dict[str, Any] | None:
        """The detail of the newest event with that name since the current run began."""
        event = self.newest(what, of_run=True)
        return event.detail if event else None

    def approval(self) -> Approval:
        """The approval of the last certificate. A switch, a rejection or a rollback ends an earlier approval."""
        event = self.newest(*APPROVAL)
        return Approval(event.what, event.detail.get("by")) if event else Approval("", None)

    def paused(self) -> Event | None:
        return self.standing("paused", "resumed")

    def hold_events(self) -> None:
        """Keeps others from recording events until the caller's transaction ends, so no pause can come in between."""
        self._execute("event_lock")

    def plan(self, rows_by_team: Mapping[int, int]) -> None:
        teams = [{"team_id": team_id, "rows_source": rows} for team_id, rows in rows_by_team.items()]
        self._execute("team_plan", {"teams": Jsonb(teams)})

    def remember_tasks(self, batches: Iterable[list[int]]) -> None:
        """Records which of this run's mapped tasks each team is in, by the number of its batch."""
        tasks = [{"map_index": number, "team_ids": team_ids} for number, team_ids in enumerate(batches)]
        self._execute("team_task", {"airflow_run": self.airflow_run, "tasks": Jsonb(tasks)})

    def teams(self, team_ids: Iterable[int] | None = None) -> list[Team]:
        """These teams, or all of them."""
        return self._rows(Team, "teams", {"team_ids": None if team_ids is None else list(team_ids)}).fetchall()

    def team(self, team_id: int) -> Team:
        teams = self.teams([team_id])
        if not teams:
            raise MigrationError(
                f"Team {team_id} is not in the ledger. Nothing was copied. Clear plan_teams and what follows it."
            )
        return teams[0]

    def start_copy(self, team_ids: Iterable[int], attempts: int = 1) -> None:
        self._execute("team_copying", {"team_ids": list(team_ids), "attempts": attempts})

    def checkpoint(self, team_id: int) -> bytes | None:
        """Where the next slice begins: b"" at first, None once the last slice is done."""
        last: tuple[bytes | None] = self._execute("slice_last", {"team_id": team_id}).fetchone() or (b"",)
        return last[0]

    def ended(self, team_ids: Iterable[int]) -> set[int]:
        """The teams whose last slice is done."""
        return {team_id for (team_id,) in self._execute("slice_ended", {"team_ids": list(team_ids)})}

    def finish_slices(self, copied: Mapping[Slice, int], cost: Cost) -> None:
        """Finishes slices of different teams that were copied by the same statements; `copied` has the rows of each."""
        slices = {
            "team_ids": [one.team_id for one in copied],
            "lowers": [one.lower for one in copied],
            "uppers": [one.upper for one in copied],
            "rows_copied": list(copied.values()),
        }
        self._execute("slice_finish", {**slices, **asdict(cost)})

    def remember_range_rows(self, team_id: int, rows: int) -> None:
        self._execute("team_range_rows", {"team_id": team_id, "range_rows": rows})

    def smallest_range_rows(self) -> int | None:
        """The range size that fitted into memory for the team that needed the most memory."""
        rows: int | None = self._value("range_rows_smallest")
        return rows

    def remember_memory_budget(self, team_ids: Iterable[int], memory: int) -> None:
        self._execute("team_memory_budget", {"team_ids": list(team_ids), "memory_budget": memory})

    def set_copied(self, team_ids: Iterable[int]) -> None:
        self._execute("team_copied", {"team_ids": list(team_ids)})

    def set_verified(self, teams: Iterable[Mapping[str, Any]], began: datetime) -> None:
        """Marks teams as verified by a comparison that began then. Each of `teams` has a team_id and these facts:

        - old_differs
        - mark: where both databases stood when the verification began, for rechecking
        - digest and truth_digest of the whole team, as the new table's reader sees it and as Postgres has it
        - tombstones: how many tombstones of the application the new table has for ids that are not in Postgres
        - seconds: the team's share of the time
        """
        verified = list(teams)
        self._execute("team_verified", {"teams": Jsonb(verified)})
        self.settle_findings([team["team_id"] for team in verified], began)

    def set_failed(self, team_ids: Iterable[int], error: str) -> None:
        self._execute("team_failed", {"team_ids": list(team_ids), "error": error})

    def verify_all_again(self) -> None:
        self._execute("team_reverify")

    def add_findings(self, findings: Sequence[Mapping[str, Any]]) -> None:
        self._execute("finding_add", {"findings": Jsonb(findings)})

    def with_open_findings(self) -> set[int]:
        return {team_id for (team_id,) in self._execute("findings_open")}

    def compared_again(self, marks: Mapping[int, Mapping[str, Any]], began: datetime) -> None:
        """The teams agree with Postgres as a whole, as their new marks say: their findings are closed, and another try
        of the switch need not compare them as a whole. `began` is when the comparison began."""
        self._execute("team_compared_again", {"marks": Jsonb(dict(marks))})
        self.settle_findings(marks, began)

    def settle_findings(self, team_ids: Iterable[int] | None, found_before: datetime) -> None:
        """Closes the findings of teams (None: all) that agreed with Postgres in a comparison that began at
        `found_before`. An audit by the side of it may have found more since."""
        teams = None if team_ids is None else list(team_ids)
        self._execute("findings_settled", {"team_ids": teams, "found_before": found_before})

    def findings_by_kind(
        self, team_ids: Iterable[int] | None = None, since: datetime | None = None
    ) -> dict[str, dict[str, int]]:
        """How many findings are repaired and how many remain: of these teams, or of all; those since then, or ever."""
        teams = None if team_ids is None else list(team_ids)
        found = self._execute("findings_by_kind", {"team_ids": teams, "since": since})
        return {kind: {"repaired": repaired, "remaining": remaining} for kind, repaired, remaining in found}

    def _execute(self, name: str, parameters: Mapping[str, Any] | None = None) -> Cursor[Any]:
        return postgres.execute(self.connection, name, parameters)

    def _rows(self, kind: type[T], name: str, parameters: Mapping[str, Any] | None = None) -> Cursor[T]:
        return postgres.execute(self.connection, name, parameters, class_row(kind))

    def _value(self, name: str) -> Any:
        return postgres.value(self.connection, name)
