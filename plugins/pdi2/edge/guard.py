"""Who may see the page and who may act on it, how it opens the ledger, and what it says if it cannot.

Whoever may read the DAG's runs may read the page; whoever may trigger the DAG may pause and resume. A GET changes
nothing, because its transaction is read-only. The page shows distinct_ids that clients have sent, so the headers of
every answer forbid everything but the page's own files.
"""

import json
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import psycopg
from airflow.api_fastapi.app import API_BASE_URL
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.exceptions import AirflowNotFoundException
from airflow.models.connection import Connection as AirflowConnection
from airflow.providers.postgres.hooks.postgres import PostgresHook
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from psycopg import Connection

from pdi2.core.engines import postgres, sessions
from pdi2.core.state.ledger import Ledger
from pdi2.edge import FILL
from pdi2.edge.connections import POSTGRES

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5
READERS = threading.BoundedSemaphore(4)
"""How many Postgres sessions a process of the API server reads with: PostHog needs the others."""
WAIT_SECONDS = 3
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

may_read = requires_access_dag("GET", DagAccessEntity.RUN, FILL)
may_act = requires_access_dag("POST", DagAccessEntity.RUN, FILL)

app = FastAPI(title="pdi2", docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(may_read)])


@app.middleware("http")
async def add_headers(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await answer(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


@app.exception_handler(psycopg.Error)
def unreadable(request: Request, error: Exception) -> JSONResponse:
    """Logs the cause, and does not show it, because it may name hosts and users.

    It logs one line, because each page that is open asks every two seconds.
    """
    log.error("The migration page cannot read the ledger: %s", str(error).strip())
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
        return _unavailable("There is no ledger yet, or it is of an earlier release: the next run adds what it lacks.")
    return _unavailable(
        f"The ledger cannot be read through the Airflow connection {POSTGRES} ({type(error).__name__}). "
        "Nothing was changed. A migration that is running goes on, or is tried again until Postgres is back. The API "
        "server's log has the cause."
    )


@app.exception_handler(AirflowNotFoundException)
def not_connected(request: Request, error: Exception) -> JSONResponse:
    log.error("The migration page has no connection", exc_info=error)
    return _unavailable(
        f"The Airflow connection {POSTGRES} does not exist, so the ledger cannot be read. Nothing was "
        f"changed. Create it under Admin, Connections, with the type postgres, or set "
        f"AIRFLOW_CONN_{POSTGRES.upper()} for the API server too."
    )


@app.exception_handler(sessions.PoolerError)
def behind_a_pooler(request: Request, error: Exception) -> JSONResponse:
    return _unavailable(str(error))


def _unavailable(detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status_code=503)


def same_origin(request: Request) -> None:
    """Refuses a POST from other sites, by the origin that a browser sends: a session cookie alone proves no intent."""
    origin = urlsplit(request.headers.get("origin", ""))
    if not origin.netloc or origin.netloc not in (request.headers["host"], urlsplit(API_BASE_URL).netloc):
        raise HTTPException(
            403,
            "Nothing was changed: the browser's address is not Airflow's, as behind a proxy that changes it. Set "
            "base_url in section [api] of Airflow's configuration to the address that browsers use.",
        )


def acts(request: Request, user: Any) -> bool:
    try:
        may_act(request, user)
    except HTTPException:
        return False
    return True


def _connect() -> Any:
    """Connects with a timeout, because no thread of the API server may wait for a dead database."""
    connection = AirflowConnection.get_connection_from_secrets(POSTGRES)
    connection.set_extra(json.dumps({"connect_timeout": CONNECT_SECONDS, **connection.extra_dejson}))
    return PostgresHook(connection=connection).get_conn()


@contextmanager
def reading() -> Iterator[Connection[Any]]:
    """A read-only transaction that sees the ledger as of one moment."""
    if not READERS.acquire(timeout=WAIT_SECONDS):
        raise HTTPException(
            503,
            "This page is busy: it reads the ledger for four people at a time. Nothing was changed, and a migration "
            "that is running goes on. The page asks again by itself.",
        )
    try:
        with sessions.begin(_connect) as connection:
            connection.read_only = True
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            with connection.transaction():
                postgres.execute(connection, "watch_limit")
                yield connection
    finally:
        READERS.release()


@contextmanager
def acting(user: Any) -> Iterator[Ledger]:
    with sessions.begin(_connect) as connection:
        yield Ledger(connection, "", user.get_name())
