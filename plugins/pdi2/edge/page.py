"""The migration page: static files, and JSON read from the ledger, behind Airflow's login and permissions.

Whoever may read the DAG's runs reads; whoever may trigger the DAG may pause and resume. GET changes nothing: it has
a read-only transaction. The page shows what clients sent as distinct_ids, so nothing but JSON and static files leaves.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

import psycopg
from airflow.api_fastapi.app import API_BASE_URL, API_ROOT_PATH
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.exceptions import AirflowNotFoundException
from airflow.models.connection import Connection
from airflow.models.dagrun import DagRun
from airflow.models.pool import Pool
from airflow.providers.postgres.hooks.postgres import PostgresHook
from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from sqlalchemy import select

from pdi2.core import postgres, watching
from pdi2.core.ledger import Ledger, TeamStatus
from pdi2.edge import POOL
from pdi2.edge.connections import POSTGRES

log = logging.getLogger(__name__)

FILL, ROLLBACK = "fill_person_distinct_id2", "rollback_person_distinct_id2"
PREFIX = "/pdi2"
ROOT = API_ROOT_PATH.rstrip("/")
CONNECT_SECONDS = 5
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
FILES = {path.name: str(path) for path in (files("pdi2") / "web").iterdir()}

may_read = requires_access_dag("GET", DagAccessEntity.RUN, FILL)
may_act = requires_access_dag("POST", DagAccessEntity.RUN, FILL)

app = FastAPI(title="pdi2", docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(may_read)])

Limit = Annotated[int, Query(ge=1, le=100)]
Offset = Annotated[int, Query(ge=0, le=10_000_000)]
Text = Annotated[str | None, Query(max_length=400, pattern="^[^\0]*$")]
Id = Annotated[int, Path(ge=0, le=2**63 - 1)]
MaybeId = Annotated[int | None, Query(ge=0, le=2**63 - 1)]
TeamSort = Literal["team_id", "status", "rows", "copied", "speed", "attempts", "memory", "verified", "findings"]
FindingKind = Literal["missing", "stale", "wrong_person", "resurrected", "ahead"]


@app.middleware("http")
async def add_headers(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await answer(request)
    response.headers.update(HEADERS)
    return response


@app.exception_handler(psycopg.Error)
@app.exception_handler(AirflowNotFoundException)
def unreadable(request: Request, error: Exception) -> JSONResponse:
    """The cause goes to the log alone: it may name hosts and users."""
    log.error("The migration page cannot read the ledger", exc_info=error)
    return JSONResponse(
        {
            "detail": f"The ledger cannot be read through the Airflow connection {POSTGRES} ({type(error).__name__}). "
            "Nothing was changed, and a migration at work goes on. The API server's log has the cause."
        },
        status_code=503,
    )


def same_origin(request: Request) -> None:
    """A browser names the page that a POST comes from; the session's cookie alone is no proof of intent."""
    origin = urlsplit(request.headers.get("origin", ""))
    if not origin.netloc or origin.netloc not in (request.headers["host"], urlsplit(API_BASE_URL).netloc):
        raise HTTPException(403, "Only Airflow's own pages may ask for this.")


@app.get("/")
def index() -> FileResponse:
    return FileResponse(FILES["index.html"])


@app.get("/files/{name}")
def file(name: str) -> FileResponse:
    if name not in FILES:
        raise HTTPException(404)
    return FileResponse(FILES[name])


@app.get("/status")
def status(request: Request, user: GetUserDep, session: SessionDep) -> dict[str, Any]:
    """The migration as a whole, what Airflow says of its run and pool, and where the operator acts."""
    with _reading() as connection:
        seen = watching.status(connection)
    airflow_run = seen["run"]["airflow_run"] if seen["run"] else ""
    dag_id, _, run_id = airflow_run.partition(" ")
    pool = Pool.get_pool(POOL, session=session)
    return {
        **seen,
        "airflow": {
            "state": session.scalar(select(DagRun.state).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)),
            "pool": pool and {"slots": pool.slots, "occupied": pool.occupied_slots(session=session)},
        },
        "links": {
            "dag": f"{ROOT}/dags/{FILL}",
            "rollback": f"{ROOT}/dags/{ROLLBACK}",
            "pool": f"{ROOT}/pools",
            "run": _run_link(airflow_run),
            "approval": f"{_run_link(airflow_run)}/tasks/approve/required_actions",
        },
        "user": {"name": user.get_name(), "may_act": _may_act(request, user)},
    }


@app.get("/teams")
def teams(
    status: TeamStatus | None = None,
    search: Text = None,
    sort: TeamSort = "rows",
    descending: bool = True,
    limit: Limit = 50,
    offset: Offset = 0,
) -> dict[str, Any]:
    with _reading() as connection:
        page = watching.teams(
            connection,
            status=status,
            search=search or None,
            sort=sort,
            descending=descending,
            limit=limit,
            offset=offset,
        )
    for team in page["lines"]:
        _add_logs(team)
    return page


@app.get("/teams/{team_id}")
def team(team_id: Id) -> dict[str, Any]:
    """A team, and the newest of its slices, findings and events."""
    with _reading() as connection:
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
    with _reading() as connection:
        return watching.findings(
            connection,
            team_id=team_id,
            kind=kind,
            repaired=repaired,
            search=search or None,
            limit=limit,
            offset=offset,
        )


@app.get("/events")
def events(limit: Limit = 50, offset: Offset = 0) -> dict[str, Any]:
    with _reading() as connection:
        return watching.events(connection, team_id=None, limit=limit, offset=offset)


@app.post("/pause", status_code=204, dependencies=[Depends(may_act), Depends(same_origin)])
def pause(user: GetUserDep) -> None:
    """Copies stop after their current slices, and no team begins, until somebody resumes."""
    with _acting(user) as ledger:
        run = ledger.current_run()
        if run is None or run.ended_at:
            raise HTTPException(409, "No run is at work, so there is nothing to pause.")
        if not ledger.paused():
            ledger.record("paused")


@app.post("/resume", status_code=204, dependencies=[Depends(may_act), Depends(same_origin)])
def resume(user: GetUserDep) -> None:
    with _acting(user) as ledger:
        if ledger.exists() and ledger.paused():
            ledger.record("resumed")


def _may_act(request: Request, user: Any) -> bool:
    try:
        may_act(request, user)
    except HTTPException:
        return False
    return True


def _connect() -> Any:
    """As the tasks do, but for a limit of time: no thread of the API server may wait for a dead database."""
    connection = Connection.get_connection_from_secrets(POSTGRES)
    connection.set_extra(json.dumps({"connect_timeout": CONNECT_SECONDS, **connection.extra_dejson}))
    return PostgresHook(connection=connection).get_conn()


@contextmanager
def _reading() -> Iterator[Any]:
    """One moment of the ledger, in a transaction that cannot write."""
    with _connect() as connection:
        connection.read_only = True
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        postgres.execute(connection, "watch_limit")
        yield connection


@contextmanager
def _acting(user: Any) -> Iterator[Ledger]:
    with _connect() as connection:
        yield Ledger(connection, "", user.get_name())


def _run_link(airflow_run: str) -> str:
    """The ledger calls a run of Airflow by its DAG's id and its own."""
    dag_id, _, run_id = airflow_run.partition(" ")
    return f"{ROOT}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"


def _add_logs(team: dict[str, Any]) -> None:
    """Where Airflow shows the logs of the team's tasks; None for a team that no run has planned yet."""
    airflow_run, map_index = team.pop("airflow_run"), team.pop("map_index")
    team["logs"] = airflow_run and {
        name: f"{_run_link(airflow_run)}/tasks/team.{name}/mapped/{map_index}" for name in ("copy", "verify")
    }


VIEWS = [
    {"name": "Migration", "href": f"{ROOT}{PREFIX}/{query}", "destination": destination, "url_route": route}
    for destination, route, query in (
        ("nav", "migration", ""),
        ("dag", "migration-of-dag", "?dag={DAG_ID}"),
        ("dag_run", "migration-of-run", "?dag={DAG_ID}"),
    )
]
