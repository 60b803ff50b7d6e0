"""Begins every connection to Postgres: makes sure that it has its own session, and sets this project's limits."""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.rows import tuple_row

from pdi2.core.engines import postgres
from pdi2.core.engines.failures import BusyError, MigrationError

SECOND_SESSION_SECONDS = 5
CLEAN_WITHIN_SECONDS = 5
LOOKS = 3
REMEDY = (
    "Point the Airflow connection posthog_postgres at Postgres itself (its own port, usually 5432), or at a pool in "
    "session mode."
)


class PoolerError(MigrationError):
    """A connection pooler stands in front of Postgres and gives a connection no session of its own."""


class FullPoolError(PoolerError, BusyError):
    """The pool has no session left. This may pass."""


def begin(connect: Callable[[], Connection[Any]]) -> Connection[Any]:
    """A new connection in autocommit mode, with our own time limits instead of its role's. Raises PoolerError.

    Advisory locks and settings belong to a session, so the session must last as long as the connection. Named prepared
    statements are never used, because a pool may pass a session on with them in it.
    """
    connection = connect()
    try:
        connection.autocommit = True
        connection.prepare_threshold = None
        connection.row_factory = tuple_row  # Airflow's connection may have another (its extra `cursor`)
        _refuse_a_shared_session(connection, connect)
        postgres.execute(connection, "session_limits")
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_a_shared_session(connection: Connection[Any], connect: Callable[[], Connection[Any]]) -> None:
    """Raises PoolerError if a pooler gives each statement another session.

    A pooler reports a made-up process id, while Postgres reports the real one. In session mode each of two connections
    keeps its session. In transaction mode a connection gets the session that was used last, or all sessions take turns.
    Looking once at the second connection and twice at the first shows both cases. Only then is anything locked: a pool
    must free what a connection leaves behind.
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
            raise FullPoolError(
                f"Postgres is reached through a connection pooler that gave no second session within "
                f"{SECOND_SESSION_SECONDS} s, but several tasks run at once. If it is only busy, this passes. "
                f"{REMEDY}"
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
        postgres.execute(second, "session_lock")
    _refuse_what_is_left(connection, others.pop())


def _refuse_what_is_left(connection: Connection[Any], session: int) -> None:
    """Raises PoolerError if the lock of a closed connection stays in its session."""
    deadline = time.monotonic() + CLEAN_WITHIN_SECONDS
    while postgres.value(connection, "session_locked", {"session": session}):
        if time.monotonic() > deadline:
            raise PoolerError(
                "Postgres is reached through a connection pooler (such as PgBouncer) that passes a session on with the "
                "locks of whoever had it: the lock of a task that has ended would keep others waiting. Set its "
                "server_reset_query to DISCARD ALL, which is the default, or point the Airflow connection "
                "posthog_postgres at Postgres itself (its own port, usually 5432)."
            )
        time.sleep(0.05)


def _hang_up(connection: Connection[Any]) -> None:
    """Ends the wait of another thread. A pooler would not pass on a cancellation for a connection without a session."""
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


def _session(connection: Connection[Any]) -> int:
    session: int = postgres.value(connection, "session")
    return session
