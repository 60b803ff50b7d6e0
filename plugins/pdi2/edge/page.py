"""The migration page: static files, the ledger and Airflow's runs as JSON, and the certificates."""

from importlib.resources import files
from typing import Annotated, Any, Literal
from urllib.parse import quote

from airflow.api_fastapi.app import API_ROOT_PATH
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.models.dagrun import DagRun
from airflow.models.pool import Pool
from fastapi import Depends, HTTPException, Path, Query, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy.orm import Session

from pdi2.core.report import watching
from pdi2.core.report.runbook import RUNBOOK, row_of_message
from pdi2.core.state.ledger import FAILED, TeamStatus
from pdi2.core.state.words import counted
from pdi2.edge import FILL, POOL, runs
from pdi2.edge.guard import acting, acts, app, may_act, reading, same_origin
from pdi2.edge.runs import AUDIT, ROLLBACK

PREFIX = "/pdi2"
ROOT = API_ROOT_PATH.rstrip("/")
CERTIFICATE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'self'"
"""A certificate is one file that contains its style. It needs no script, no form and no origin."""
RUNS_LISTED = 20
FILES = {path.name: str(path) for path in (files("pdi2") / "web").iterdir()}

Limit = Annotated[int, Query(ge=1, le=100)]
Offset = Annotated[int, Query(ge=0, le=10_000_000)]
Text = Annotated[str | None, Query(max_length=400, pattern="^[^\0]*$")]
Id = Annotated[int, Path(ge=0, le=2**63 - 1)]
MaybeId = Annotated[int | None, Query(ge=0, le=2**63 - 1)]
TeamSort = Literal["team_id", "status", "rows", "copied", "speed", "attempts", "memory", "verified", "findings"]
FindingKind = Literal["missing", "stale", "wrong_person", "resurrected", "ahead"]


@app.get("/")
def index() -> FileResponse:
    return FileResponse(FILES["index.html"])


@app.get("/files/{name}")
def file(name: str) -> FileResponse:
    if name not in FILES:
        raise HTTPException(404)
    return FileResponse(FILES[name])


@app.get("/runbook")
def runbook() -> FileResponse:
    """The runbook as it is written. It may be missing if only the package's folder was copied to install it."""
    if not RUNBOOK.is_file():
        raise HTTPException(404, "The runbook was not installed with the package: see docs/runbook.md of the project.")
    return FileResponse(str(RUNBOOK), media_type="text/plain; charset=utf-8")


@app.get("/status")
def status(
    request: Request, user: GetUserDep, session: SessionDep, dag: Text = None, run: Text = None
) -> dict[str, Any]:
    """A run (the ledger's newest if none is named), what Airflow says about it, and links to where an operator acts."""
    wanted = f"{dag} {run}" if dag and run else None
    with reading() as connection:
        owner = runs.as_it_is(session, watching.run(connection, wanted))
        newest = owner if owner and owner["newest"] else runs.as_it_is(session, watching.run(connection))
        airflow_run = wanted or (owner["airflow_run"] if owner else "")
        dag_run = runs.run(session, airflow_run)
        if wanted and not owner and not dag_run:
            raise HTTPException(404, "Neither Airflow nor the ledger knows this run.")
        pool = Pool.get_pool(POOL, session=session)
        airflow = runs.tasks(session, dag_run) if dag_run else {}
        airflow["repairs"] = bool(dag_run and (dag_run.conf or {}).get("repair"))  # only an audit has it
        airflow["cleared_at"] = dag_run.queued_at if dag_run and dag_run.clear_number else None
        airflow["unknown"] = bool(owner and not owner["ended_at"] and not dag_run)
        airflow["old_writes_end"] = runs.old_writes_end(session)
        airflow["pool"] = pool and {"slots": pool.slots}
        if dag_run and (engine := airflow["unanswered"]):
            last = watching.last_row_at(connection, owner) if owner else None
            airflow["unanswered_since"] = runs.unanswered_since(session, dag_run, engine, last)
            # A row came since, so the engine answers others; or this page has just read it.
            if airflow["unanswered_since"] is None or engine == "Postgres":
                airflow["unanswered"] = None
        alive = dag_run.state in runs.GOING_ON if dag_run else True
        newer = _newer(session, newest)
        told = _other_run(session, newer)
        airflow["followed"] = bool(wanted and newer and runs.name(newer) != wanted)
        if wanted and not owner:
            other = _other_run(session, dag_run)
        else:
            other = told if owner is newest else _other_run(session, _newer(session, owner))
        airflow["dag_is_paused"] = runs.dag_is_paused(session)
        going = dag_run if dag_run and dag_run.state in runs.GOING_ON else newer  # a newer one waits for its turn
        airflow["still"] = runs.still(session, going)
        airflow["scheduler_away_since"] = runs.scheduler_away_since(session)
        seen = watching.status(connection, owner, newest, {**airflow, "newer": told}, alive)
    if seen["run"] and seen["run"]["outcome"] in (None, FAILED):
        seen["failures"] = [*_unrecorded(airflow.get("states", {}), seen["failures"]), *seen["failures"]]
    return {
        **seen,
        "other": other,
        "airflow": {**airflow, "state": dag_run.state if dag_run else None},
        "links": {
            "dag": f"{ROOT}/dags/{FILL}",
            "rollback": f"{ROOT}/dags/{ROLLBACK}",
            "audit": f"{ROOT}/dags/{AUDIT}",
            "pool": f"{ROOT}/pools",
            "run": _run_link(airflow_run),
            "approval": f"{_run_link(airflow_run)}/tasks/approve/required_actions",
        },
        "user": {"may_act": acts(request, user)},
    }


@app.get("/runs")
def list_of_runs(session: SessionDep) -> dict[str, Any]:
    """The newest runs of the three DAGs with their outcomes, and runs that only the ledger still knows."""
    with reading() as connection:
        owners: dict[str, dict[str, Any]] = {}
        for line in watching.runs(connection, RUNS_LISTED):  # the newest first; a cleared run has several
            owners.setdefault(line["airflow_run"], line)
    listed = runs.newest(session, RUNS_LISTED)
    told = runs.left_for_the_page(session, listed)
    lines = [runs.summary(one, owners.pop(runs.name(one), None), told.get(runs.name(one), {})) for one in listed]
    oldest = min((line["started_at"] for line in lines if line["started_at"]), default=None)
    lines += [_gone(line) for line in owners.values() if oldest is None or line["started_at"] > oldest]
    for line in lines:
        line["link"] = line["dag_id"] and _run_link(line["airflow_run"])
    return {"total": len(lines), "lines": lines}


@app.get("/certificates/{run_id}")
def certificate(run_id: Id, form: Literal["html", "json"] = "html", download: bool = False) -> Response:
    """The certificate that `report` wrote for the ledger's run with that number, to read here or to download."""
    with reading() as connection:
        found = watching.certificate(connection, run_id)
    if found is None:
        raise HTTPException(404, f"Run {run_id} of the ledger has no certificate: it has not ended, or never began.")
    media_type = "text/html" if form == "html" else "application/json"
    headers = {"Content-Security-Policy": CERTIFICATE_POLICY}
    if download:
        headers["Content-Disposition"] = f'attachment; filename="{found["name"]}.{form}"'
    return Response(found[form], media_type=media_type, headers=headers)


@app.get("/teams")
def teams(
    status: TeamStatus | None = None,
    search: Text = None,
    sort: TeamSort = "rows",
    descending: bool = True,
    limit: Limit = 50,
    offset: Offset = 0,
) -> dict[str, Any]:
    with reading() as connection:
        page = watching.teams(
            connection, status=status, search=search, sort=sort, descending=descending, limit=limit, offset=offset
        )
    for team in page["lines"]:
        _add_logs(team)
    return page


@app.get("/teams/{team_id}")
def team(team_id: Id) -> dict[str, Any]:
    """A team, and the newest of its slices and events."""
    with reading() as connection:
        found = watching.team(connection, team_id)
    if found is None:
        raise HTTPException(404, f"Team {team_id} is not in the ledger.")
    _add_logs(found["team"])
    return found


@app.get("/findings")
def findings(
    team_id: MaybeId = None,
    kind: FindingKind | None = None,
    repaired: bool | None = None,
    search: Text = None,
    limit: Limit = 50,
    offset: Offset = 0,
) -> dict[str, Any]:
    with reading() as connection:
        return watching.findings(
            connection, team_id=team_id, kind=kind, repaired=repaired, search=search, limit=limit, offset=offset
        )


@app.get("/events")
def events(milestones: bool = True, limit: Limit = 50, offset: Offset = 0) -> dict[str, Any]:
    with reading() as connection:
        return watching.events(connection, milestones, team_id=None, limit=limit, offset=offset)


@app.post("/pause", status_code=204, dependencies=[Depends(may_act), Depends(same_origin)])
def pause(user: GetUserDep, session: SessionDep) -> None:
    """Pauses the migration: copies stop after their current slices, and no team begins until somebody resumes."""
    with acting(user) as ledger:
        run = ledger.current_run()
        at_work = run and (not run.ended_at or runs.goes_on_after_its_report(session, run.airflow_run))
        if not at_work and not runs.old_writes_end(session):
            raise HTTPException(409, "No run is going on, so there is nothing to pause.")
        if not ledger.paused():
            ledger.record("paused")


@app.post("/resume", status_code=204, dependencies=[Depends(may_act), Depends(same_origin)])
def resume(user: GetUserDep) -> None:
    with acting(user) as ledger:
        if ledger.exists() and ledger.paused():
            ledger.record("resumed")


def _newer(session: Session, owner: dict[str, Any] | None) -> DagRun | None:
    """A migration run that came after the ledger's owner and does not own it."""
    newest = next(iter(runs.newest(session, 1, [FILL])), None)
    if newest and owner:
        before = newest.start_date is not None and newest.start_date < owner["started_at"]
        return None if before or runs.name(newest) == owner["airflow_run"] else newest
    return newest


def _other_run(session: Session, dag_run: DagRun | None) -> dict[str, Any] | None:
    """What the page says about a run that does not own the ledger."""
    if dag_run is None:
        return None
    told = runs.left_for_the_page(session, [dag_run]).get(runs.name(dag_run), {})
    return runs.summary(dag_run, None, told) | told | {"link": _run_link(runs.name(dag_run))}


def _unrecorded(states: dict[str, dict[str, int]], told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Failures that the ledger does not know: each try of the task was killed, or could not reach Postgres."""
    known = {"team" if one["teams"] else one["task"].partition(".")[0] for one in told}
    cause = "failed and could not say why in the ledger: see the task's log."
    return [
        {"task": f"{task} ({counted(tasks['failed'], 'task')})", "teams": 0, "cause": cause, "error": cause}
        | {"runbook": row_of_message(cause)}
        for task, tasks in states.items()
        if "failed" in tasks and task.partition(".")[0] not in known
    ]


def _gone(line: dict[str, Any]) -> dict[str, Any]:
    """The line of a run from another Airflow, or of one that this Airflow has forgotten."""
    kind = "migration" if line["settings"] else "rollback"
    known = {name: line[name] for name in ("airflow_run", "actor", "started_at", "ended_at", "outcome")}
    return {**known, "dag_id": None, "kind": kind, "certificate": line["id"] if line["certificate"] else None}


def _run_link(airflow_run: str) -> str:
    """The link to a run. The ledger names an Airflow run by its DAG's id and its own id."""
    dag_id, _, run_id = airflow_run.partition(" ")
    return f"{ROOT}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"


def _add_logs(team: dict[str, Any]) -> None:
    """Adds links to the logs of the team's tasks in Airflow; None for a team that no run has planned yet."""
    airflow_run, map_index = team.pop("airflow_run"), team.pop("map_index")
    team["logs"] = airflow_run and {
        name: f"{_run_link(airflow_run)}/tasks/team.{name}/mapped/{map_index}" for name in ("copy", "verify")
    }


VIEWS = [
    {"name": "Migration", "href": f"{ROOT}{PREFIX}/{query}", "destination": destination, "url_route": route}
    for destination, route, query in (
        ("nav", "migration", ""),
        ("dag", "migration-of-dag", "?dag={DAG_ID}"),
        ("dag_run", "migration-of-run", "?dag={DAG_ID}&run={RUN_ID}"),
    )
]
