"""What every connection to Postgres begins with: a session of its own, and limits that are this project's."""

import os
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg
from psycopg import Connection

from pdi2.core.engines import postgres
from pdi2.core.engines.failures import MigrationError

SECOND_SESSION_SECONDS = 5
LOOKS = 3
REMEDY = (
    "Point the Airflow connection posthog_postgres at Postgres itself (its own port, usually 5432), or at a pool in "
    "session mode."
)


class PoolerError(MigrationError):
    """A connection pooler stands before Postgres, and keeps no session for the one who opened it."""


def begin(connect: Callable[[], Connection[Any]]) -> Connection[Any]:
    """A new connection in autocommit mode, whatever time limits its role carries. Raises PoolerError.

    Advisory locks and settings belong to a session, so it must last as long as the connection. Named prepared
    statements are never used, since a pool may hand a session on with them in it.
    """
    connection = connect()
    try:
        connection.autocommit = True
        connection.prepare_threshold = None
        _refuse_a_shared_session(connection, connect)
        postgres.execute(connection, "session_limits")
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_a_shared_session(connection: Connection[Any], connect: Callable[[], Connection[Any]]) -> None:
    """A pooler answers a connection with a process id of its own making, where Postgres gives the real one.

    In session mode each of two connections keeps the session it has. In transaction mode the one that was used last
    is given to whoever comes next, or all of them go around in turn: looking once at the second connection and twice
    at the first shows either.
    """
    if _session(connection) == connection.info.backend_pid:
        return
    with closing(connect()) as second:
        second.autocommit = True
        second.prepare_threshold = None
        patience = threading.Timer(SECOND_SESSION_SECONDS, _hang_up, [second])
        patience.start()
        try:
            looks = [(_session(connection), _session(second), _session(connection)) for _ in range(LOOKS)]
        except psycopg.Error as error:
            raise PoolerError(
                f"Postgres is reached through a connection pooler that gave no second session within "
                f"{SECOND_SESSION_SECONDS} s, and several tasks are at work at once. {REMEDY}"
            ) from error
        finally:
            patience.cancel()
    first = {session for before, _, after in looks for session in (before, after)}
    others = {session for _, session, _ in looks}
    if len(first) > 1 or len(others) > 1 or first == others:
        raise PoolerError(
            "Postgres is reached through a connection pooler (such as PgBouncer) in transaction mode, which gives "
            f"each statement another session: the lock that keeps two runs apart would be lost. {REMEDY}"
        )


def _hang_up(connection: Connection[Any]) -> None:
    """Ends the wait of another thread: a pooler passes no cancellation on for a connection that has no session yet."""
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


def _session(connection: Connection[Any]) -> int:
    session: int = postgres.value(connection, "session")
    return session
