"""What a person who watches the migration sees: facts of the ledger alone, in a bounded number of statements."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row

from pdi2.core import postgres
from pdi2.core.ledger import TRIAL_PASSED, Ledger
from pdi2.core.reporting import REJECTED
from pdi2.core.switches import Status, Switches
from pdi2.core.way_back import way_back

RECENT_SECONDS = 300
"""Speed is that of the last minutes."""
MOST_BUCKETS = 60


@dataclass(frozen=True)
class Step:
    """A line of the run's table of contents; state: done, now, waiting (for its turn), skipped or stopped."""

    task: str
    title: str
    state: str
    at: datetime | None


@dataclass(frozen=True)
class Wait:
    """What the run waits for; `until` where it is known; `about` names what can be done about it."""

    about: str
    text: str
    until: datetime | None = None


STEPS = {
    "enable_dual_writes": ("Dual writes on", "run_started"),
    "prove_dual_writes": ("Dual writes proven", "dual_writes_proven"),
    "plan_teams": ("Teams planned", "planned"),
    "team.copy": ("Teams copied", None),
    "team.verify": ("Teams verified", None),
    "certify": ("Certified", "certified"),
    "approve": ("Approved", "reads_switched"),
    "switch_reads": ("Reads switched", "reads_switched"),
    "stop_old_writes": ("Old writes stopped", "old_writes_stopped"),
    "report": ("Reported", "report"),
}


def status(connection: Connection[Any]) -> dict[str, Any]:
    """The migration as a whole. `run` is None where none ever began."""
    ledger = Ledger(connection, "", "")
    switches = Switches(connection)
    row = switches.row()
    now = datetime.now(UTC)
    seen: dict[str, Any] = {
        "now": now,
        "switch": {
            "status": Status(row.status).name if row else None,
            "progress": row.progress if row else None,
            "finished_at": row.finished_at if row else None,
            "writes": switches.writes(),
            "reads": switches.reads(),
        },
    }
    if not ledger.exists() or (run := _one(connection, "watch_run")) is None:
        return {**seen, "run": None}
    settings = run["settings"]
    since = {"since": run["started_at"]}
    happened = {line["what"]: line for line in _all(connection, "watch_milestones", since)}
    totals = _all(connection, "watch_totals", {"team_ids": settings.get("team_ids")})
    teams = {line["status"]: line["teams"] for line in totals}
    slices = _one(connection, "watch_slices", {**since, "recent": RECENT_SECONDS}) or {}
    waits = _all(connection, "watch_waits", since)
    paused = ledger.paused()
    rows = {"source": _sum(totals, "rows_source"), "done": _sum(totals, "rows_done")}
    going_on = rows["done"] < rows["source"]
    speed = _speed(slices, now, going_on)
    steps = _steps(run, happened, totals, teams)
    return {
        **seen,
        "run": run,
        "phase": _phase(run, steps),
        "steps": [asdict(step) for step in steps],
        "way_back": _way_back(switches, settings),
        "waits": [asdict(wait) for wait in _waits(run, steps, happened, waits, row.finished_at if row else None)],
        "paused": paused and asdict(paused),
        "teams": teams,
        "rows": rows,
        "speed": speed,
        "seconds_left": (rows["source"] - rows["done"]) / speed if speed and not paused else None,
        "copy": {
            "slices": _sum(totals, "slices"),
            "seconds": _sum(totals, "copy_seconds"),
            "peak_memory": max((line["peak_memory"] or 0 for line in totals), default=0) or None,
            "old_differs": _sum(totals, "old_differs"),
        },
        "findings": ledger.findings_by_kind(),
        "throughput": _throughput(connection, slices, now, going_on),
        "read_times": _detail(happened, "read_times"),
        "certificate": _detail(happened, "certified"),
        "failure": _detail(happened, "task_failed"),
    }


def _way_back(switches: Switches, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """`possible`, `until` and `text` of way_back.WayBack; None of a rollback, which has no settings."""
    if not settings:
        return None
    return asdict(way_back(switches, settings["stop_old_writes"], settings["read_cache_seconds"]))


def teams(connection: Connection[Any], **chosen: Any) -> dict[str, Any]:
    """A page of the teams: `status`, `search`, `sort`, `descending`, `limit`, `offset`."""
    return _page(connection, "watch_teams", chosen)


def team(connection: Connection[Any], team_id: int) -> dict[str, Any] | None:
    """A team, and the newest of its slices and events."""
    chosen = {"team_id": team_id}
    found = _one(connection, "watch_team", chosen)
    return found and {
        "team": found,
        "slices": _all(connection, "watch_team_slices", chosen),
        "events": events(connection, **chosen, limit=20, offset=0)["lines"],
    }


def findings(connection: Connection[Any], **chosen: Any) -> dict[str, Any]:
    """A page of the findings: `team_id`, `kind`, `repaired`, `search`, `limit`, `offset`."""
    return _page(connection, "watch_findings", chosen)


def events(connection: Connection[Any], **chosen: Any) -> dict[str, Any]:
    """A page of the audit log, the newest first: `team_id`, `limit`, `offset`."""
    return _page(connection, "watch_events", chosen)


def _steps(
    run: Mapping[str, Any], happened: Mapping[str, Any], totals: list[dict[str, Any]], teams: Mapping[str, int]
) -> list[Step]:
    """Of a rollback, which has no settings, there are none."""
    settings = run["settings"]
    if not settings:
        return []
    done: dict[str, datetime | None] = {
        task: happened[event]["at"] for task, (_, event) in STEPS.items() if event and event in happened
    }
    if "switch_approved" in happened:
        done["approve"] = happened["switch_approved"]["at"]
    if "planned" in happened and teams.keys() <= {"copied", "verified"}:
        done["team.copy"] = max((line["copied_at"] for line in totals if line["copied_at"]), default=None)
    if "planned" in happened and teams.keys() <= {"verified"}:
        done["team.verify"] = max((line["verified_at"] for line in totals if line["verified_at"]), default=None)
    skipped = {"approve"} if not settings.get("require_approval") else set()
    if settings.get("team_ids"):
        skipped |= {"approve", "switch_reads", "stop_old_writes"}
    elif not settings.get("stop_old_writes"):
        skipped |= {"stop_old_writes"}
    left = [task for task in STEPS if task not in done and task not in skipped]
    now = left[:2] if left[:1] == ["team.copy"] else left[:1]

    def state(task: str) -> str:
        if task in skipped:
            return "skipped"
        if task in done:
            return "done"
        if run["ended_at"]:
            return "stopped"
        return "now" if task in now else "waiting"

    return [Step(task, title, state(task), done.get(task)) for task, (title, _) in STEPS.items()]


def _phase(run: Mapping[str, Any], steps: list[Step]) -> str:
    """One line: where the migration is."""
    if run["ended_at"]:
        return {
            "completed": "Complete: reads are on the new table",
            TRIAL_PASSED: "The trial passed: reads stay on the old table",
            REJECTED: "The switch was rejected: reads stay on the old table",
            "rolled back": "Rolled back: reads are on the old table",
        }.get(run["outcome"], "Failed: reads stay on the old table")
    return {
        "enable_dual_writes": "Turning dual writes on",
        "prove_dual_writes": "Proving that every write reaches both tables",
        "plan_teams": "Planning the teams",
        "team.copy": "Copying and verifying teams",
        "team.verify": "Verifying teams against Postgres",
        "certify": "Certifying that every team is verified",
        "approve": "Waiting for approval of the switch",
        "switch_reads": "Switching reads to the new table",
        "stop_old_writes": "Reads are on the new table; old writes go on for now",
        "report": "Reporting",
    }[next((step.task for step in steps if step.state == "now"), "report")]


def _waits(
    run: Mapping[str, Any],
    steps: list[Step],
    happened: Mapping[str, Any],
    copies: list[dict[str, Any]],
    switched_at: datetime | None,
) -> list[Wait]:
    now = next((step.task for step in steps if step.state == "now"), None)
    if now == "prove_dual_writes" and (watched := _detail(happened, "dual_writes_watched")):
        return [Wait("dual_writes", watched["message"], datetime.fromtimestamp(watched["until"], UTC))]
    if now in ("team.copy", "team.verify"):
        return [Wait("server", f"The copy of team {copy['team_id']} waits: {copy['reason']}") for copy in copies]
    if now == "approve":
        return [Wait("approval", "A person approves the switch in Airflow, or rejects it.")]
    if now == "stop_old_writes" and switched_at:
        until = switched_at + timedelta(seconds=run["settings"]["read_cache_seconds"])
        return [Wait("readers", "A reader may still use the old table until its cache has run out.", until)]
    return []


def _speed(slices: Mapping[str, Any], now: datetime, going_on: bool) -> float | None:
    """Rows a second of the last minutes, or of all the copying once it is over; None where no slice was finished."""
    if going_on:
        rows, seconds = slices.get("recent"), min(RECENT_SECONDS, _seconds(slices.get("began"), now))
    else:
        rows, seconds = slices.get("rows"), _seconds(slices.get("began"), slices.get("ended"))
    return rows / max(1.0, seconds) if rows else None


def _seconds(began: datetime | None, ended: datetime | None) -> float:
    return (ended - began).total_seconds() if began and ended else 0.0


def _throughput(
    connection: Connection[Any], slices: Mapping[str, Any], now: datetime, going_on: bool
) -> dict[str, Any] | None:
    """Rows a second by buckets of `width` seconds since `began`; up to now while there is something to copy."""
    began = slices.get("began")
    if began is None:
        return None
    ended = now if going_on else slices["ended"]
    width = max(1, math.ceil(_seconds(began, ended) / MOST_BUCKETS))
    buckets = [0.0] * (int(_seconds(began, ended) / width) + 1)
    for line in _all(connection, "watch_throughput", {"began": began, "width": width}):
        if line["bucket"] < len(buckets):
            buckets[line["bucket"]] = line["rows"] / width
    return {"began": began, "width": width, "rows_per_second": buckets}


def _detail(happened: Mapping[str, Any], what: str) -> dict[str, Any] | None:
    return happened[what]["detail"] if what in happened else None


def _sum(lines: list[dict[str, Any]], key: str) -> Any:
    return sum(line[key] or 0 for line in lines)


def _page(connection: Connection[Any], name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    lines = _all(connection, name, chosen)
    return {
        "total": lines[0]["total"] if lines else 0,
        "lines": [{name: line[name] for name in line if name not in ("total", "key")} for line in lines],
    }


def _all(connection: Connection[Any], name: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    return postgres.execute(connection, name, parameters, dict_row).fetchall()


def _one(connection: Connection[Any], name: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    return postgres.execute(connection, name, parameters, dict_row).fetchone()
