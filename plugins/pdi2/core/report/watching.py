"""What the migration page shows: facts from the ledger alone, read with a bounded number of statements."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row

from pdi2.core.cluster.lag import MEASURED
from pdi2.core.engines import postgres
from pdi2.core.report import progress, runbook, steps, telling
from pdi2.core.report.certificate import each_replica
from pdi2.core.report.verdict import verdict
from pdi2.core.state.ledger import REJECTED, TRIAL_PASSED, Ledger
from pdi2.core.state.switches import Status, Switches

LONGEST_SENTENCE = 2_000
QUIET = timedelta(minutes=1)
"""ClickHouse may hang for 40 minutes before a task gives it up, and until then Airflow only knows that tasks run."""
ENDED_WELL = ("completed", TRIAL_PASSED, REJECTED, "rolled back")


def run(connection: Connection[Any], airflow_run: str | None = None) -> dict[str, Any] | None:
    """The newest run in the ledger, or the named one; None if there is no such run or no ledger."""
    return next(iter(runs(connection, 1, airflow_run)), None)


def runs(connection: Connection[Any], limit: int, airflow_run: str | None = None) -> list[dict[str, Any]]:
    """The newest runs that owned the ledger."""
    chosen = {"airflow_run": airflow_run, "limit": limit}
    return _all(connection, "watch_runs", chosen) if Ledger(connection, "", "").exists() else []


def last_row_at(connection: Connection[Any], run: Mapping[str, Any]) -> datetime | None:
    """When the run last copied or verified anything."""
    work = _all(connection, "watch_work", {"since": run["started_at"], "recent": 0})
    return max((line["ended"] for line in work if line["ended"]), default=None)


def status(
    connection: Connection[Any],
    run: Mapping[str, Any] | None,
    newest: Mapping[str, Any] | None,
    airflow: Mapping[str, Any],
    alive: bool,
) -> dict[str, Any]:
    """A run, and the migration as a whole: the `newest` run decides which table is read, whichever one is shown.

    `run` is None if no run has begun, or if the one that is shown never owned the ledger. `airflow` is what Airflow
    knows about the run's tasks; `alive` says whether the run goes on in Airflow. If a newer run exists, there are no
    figures, because the ledger's teams have moved on.
    """
    switches = Switches(connection)
    row = switches.row()
    ledger = Ledger(connection, "", "")
    now = ledger.clock()  # not the API server's
    complete = row is not None and row.status == Status.COMPLETED_SUCCESSFULLY
    finished_at = row.finished_at if row else None
    there = bool(run) or ledger.exists()
    findings = ledger.findings_by_kind() if there else {}
    somebody_else = complete and not ledger.switched(finished_at)
    switch = {
        "status": Status(row.status).name if row else None,
        "progress": row.progress if row else None,
        "finished_at": finished_at,
        "writes": switches.writes(),
        "reads": switches.reads(),
        "by_somebody_else": somebody_else,
        "old_lacks_writes": there and ledger.newest("old_writes_stopped") is not None,
        "wrong": sum(count["remaining"] for count in findings.values()) if complete else 0,
        # When the audit of every team after the switch began, if no id has been wrong since.
        "found_right": postgres.value(connection, "watch_audit", {"switched_at": finished_at})
        if there and somebody_else
        else None,
    }
    paused = ledger.paused() if there else None
    seen: dict[str, Any] = {
        "now": now,
        "switch": switch,
        "run": run,
        "paused": paused and {"at": paused.at, "actor": paused.actor},
        "findings": findings,
    }
    told = {**airflow, "clock": now, "paused": bool(paused), "another": _another(run, newest, airflow)}
    if run is None or newest is None:
        return {**seen, "verdict": _first_line(switch, newest, None, bool(newest and not newest["ended_at"]), told)}
    alive = alive and not run["ended_at"]
    period = {"since": run["started_at"], "until": run["until"]}
    happened = {line["what"]: line for line in _all(connection, "watch_milestones", period)}
    if alive:
        happened.pop("report", None)  # from before its tasks were cleared
    planned_at = happened["planned"]["at"] if "planned" in happened else None
    figures = None
    if run["newest"]:
        figures = progress.figures(connection, run, now, planned_at, airflow.get("cleared_at"), alive, bool(paused))
    found = steps.steps(run, happened, figures, alive)
    current = steps.current(found)
    copies = _all(connection, "watch_waits", {"since": run["started_at"]})
    waits = steps.waits(run, current, happened, copies, finished_at if switches.has_settings else None, now)
    states = airflow.get("states", {})
    told["failed"] = any("failed" in counts for counts in states.values())  # no longer once they are cleared
    told["asked"] = any(wait.about == "approval" for wait in waits)
    told["old_writes_wait"] = run["newest"] and (_detail(happened, "old_writes_put_off") or {}).get("reason")
    told["waits"] = any(wait.about in ("server", "misses") for wait in waits)
    if figures and current in ("team.copy", "team.verify"):
        since = max(filter(None, [planned_at, *figures["last"].values()]))
        told["quiet_since"] = since if now - since > QUIET else None
    return {
        **seen,
        "alive": alive,
        "phase": steps.phase(run, found, alive, complete),
        "verdict": _first_line(switch, newest, current, alive if run["newest"] else not newest["ended_at"], told),
        "steps": [asdict(step) for step in found],
        "waits": [asdict(wait) for wait in waits],
        **(figures or {}),
        "failures": _failures(connection, run, alive, states),
        "lag": {**happened[MEASURED]["detail"], "at": happened[MEASURED]["at"]} if MEASURED in happened else None,
        "read_times": _detail(happened, "read_times"),
        "certificate": _detail(happened, "certified"),
        "replicas": _replicas(happened),
        "report": _detail(happened, "report"),
    }


def teams(connection: Connection[Any], **chosen: Any) -> dict[str, Any]:
    """A page of teams, chosen by `status`, `search`, `sort`, `descending`, `limit` and `offset`."""
    return _page(connection, "watch_teams", chosen)


def team(connection: Connection[Any], team_id: int) -> dict[str, Any] | None:
    """A team, and the newest of its slices and events."""
    chosen = {"team_id": team_id}
    found = _one(connection, "watch_team", chosen)
    return found and {
        "team": {**found, "runbook": found["error"] and runbook.row_of_message(found["error"])},
        "slices": _all(connection, "watch_team_slices", chosen),
        "events": events(connection, **chosen, milestones=False, limit=20, offset=0)["lines"],
    }


def findings(connection: Connection[Any], **chosen: Any) -> dict[str, Any]:
    """A page of findings, chosen by `team_id`, `kind`, `repaired`, `search`, `limit` and `offset`."""
    return _page(connection, "watch_findings", chosen)


def events(connection: Connection[Any], milestones: bool, **chosen: Any) -> dict[str, Any]:
    """A page of the audit log in sentences, newest first: only `milestones`, `team_id`, `limit` and `offset`."""
    names = telling.TOLD_BY_DEFAULT if milestones else None
    page = _page(connection, "watch_events", {**chosen, "names": names})
    for line in page["lines"]:
        text, until = telling.sentence(line["what"], line.pop("detail"))
        line |= {"text": text[:LONGEST_SENTENCE], "until": until}
    return page


def certificate(connection: Connection[Any], run_id: int) -> dict[str, str] | None:
    """The certificate of the ledger's run with that number: `name` without an extension, `json`, `html`."""
    if not Ledger(connection, "", "").exists():
        return None
    return _one(connection, "watch_certificate", {"run_id": run_id})


def _another(run: Mapping[str, Any] | None, newest: Mapping[str, Any] | None, airflow: Mapping[str, Any]) -> str | None:
    """What the first line says of the run whose tab this is, if the newest run is another one."""
    if (run and run["newest"]) or (newest is None and not airflow["followed"]):
        return None
    if run:
        return "Another run followed this one."
    return "This run is an audit with repair." if airflow["repairs"] else "This run has changed nothing."


def _first_line(*situation: Any) -> dict[str, Any]:
    told = verdict(*situation)
    return {**asdict(told), "runbook": runbook.row_about(told.topic)}


def _failures(
    connection: Connection[Any], run: Mapping[str, Any], alive: bool, states: Mapping[str, Mapping[str, int]]
) -> list[dict[str, Any]]:
    """What failed, grouped by cause, each with its runbook row.

    A task that Airflow will retry, or that got through later, has not failed. If Airflow has forgotten the run, or
    calls none of these tasks failed, as after a kill, every failure of a run that did not end well may be the cause.
    """
    chosen = {"since": run["started_at"], "until": run["until"], "newest": run["newest"], "alive": alive}
    lines = [
        {**line, "runbook": runbook.row_of_message(line["error"] or "")}
        for line in _all(connection, "watch_failures", chosen)
    ]
    failed = [line for line in lines if line["teams"] or "failed" in states.get(line["task"], {})]
    certain = alive or run["outcome"] in ENDED_WELL or (states and failed)
    return failed if certain else lines


def _replicas(happened: Mapping[str, Any]) -> dict[str, Any] | None:
    """What each replica had when the run last looked: at certify, then at the switch. None if there are none."""
    looked = happened.get("reads_switched") or happened.get("certified")
    each = each_replica(looked["detail"]) if looked else None
    return {"at": looked["at"], "each": each} if looked and each else None


def _detail(happened: Mapping[str, Any], what: str) -> dict[str, Any] | None:
    return happened[what]["detail"] if what in happened else None


def _page(connection: Connection[Any], name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    lines = _all(connection, name, chosen)
    return {
        "total": lines[0]["total"] if lines else 0,
        "lines": [{name: line[name] for name in line if name not in ("total", "key")} for line in lines],
    }


def _all(connection: Connection[Any], name: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    return postgres.execute(connection, name, parameters, dict_row).fetchall()


def _one(connection: Connection[Any], name: str, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    return postgres.execute(connection, name, parameters, dict_row).fetchone()
