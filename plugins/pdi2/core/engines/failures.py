"""What a failure means for the migration: split the slice, try again later, or stop.

ClickHouse's codes are those of its ErrorCodes.cpp. Codes 241 (memory) and 159 (time) have several meanings each, so the
text decides which limit was met (PostHog #31015).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

import psycopg
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError, StreamFailureError
from clickhouse_connect.driver.exceptions import Error as ClickHouseFailure

MEMORY_LIMIT_EXCEEDED = 241
QUERY_LIMIT = re.compile(r"Query memory limit|\(for query\)")
LONGEST_TEXT = 500

TIME_LIMITS = (159, 160)
"""A statement ran too long, or would (160: by its estimate or its speed). Waiting too long for a replica is 159 too."""
OWN_TIME_LIMIT = re.compile("Timeout exceeded: elapsed|Estimated query execution time|executing too slow")
QUOTA_EXCEEDED = 201

TRANSIENT = {
    159: "a replica or a lock did not come in time",
    173: "the operating system has no memory left",
    201: "the user's quota is used up until its interval ends",
    202: "too many statements run at the same time",
    203: "no free connection",
    209: "the network timed out",
    210: "the network failed",
    216: "a statement that was sent again is still running",
    225: "Keeper cannot be reached",
    236: "the server was shutting down",
    242: "the table is read-only for now",
    244: "the session with Keeper ended meanwhile",
    252: "the table has too many parts; merges must catch up",
    285: "too few replicas are alive",
    286: "an earlier insert waits for its quorum",
    289: "the replica lags behind the others",
    319: "the fate of an insert is unknown",
    341: "a mutation waits for a replica that is away",
    373: "an earlier statement of the session is not over yet",
    394: "the statement was cancelled, as by a server that restarts",
    425: "the operating system failed a call",
    439: "no thread is free",
    473: "another statement holds a lock",
    517: "another change of the table is under way",
    667: "the replica has not begun yet",
    692: "the table has too many mutations; merges must catch up",
    696: "the server is starting or stopping",
    700: "the user has too many sessions",
    722: "the server could not load the table yet",
    733: "the table is being restarted",
    745: "the server is overloaded",
    762: "the server has too many connections",
    776: "no slot for statements is free",
    777: "no memory could be reserved in time",
    778: "no memory could be reserved",
    999: "Keeper failed",
    1019: "no slot for statements came free in time",
    1020: "no memory came free in time",
}
WAITED_FOR = {202, 225, 236, 242, 244, 252, 285, 286, 289, 319, 341, 667, 692, 700, 733}
"""The errors in TRANSIENT that pass once replicas, Keeper or merges catch up, or other statements end, such as another
copy's. Waiting for them uses up no try."""
KEEPER_FAILED = 999
KEEPER_PASSES = re.compile(r"connection|session|timeout|timed out|tries failed", re.IGNORECASE)
"""Words in the text of a Keeper failure that mean it could not be reached. Other texts are about Keeper's contents."""
REFUSED = re.compile(r"HTTP status (?!408|425|429)4\d\d")
"""A request that the sender must change, in the words of clickhouse-connect when ClickHouse gives no code."""

# SQLSTATE classes: connection failure, read-only (a primary that a failover made a standby), idle transaction ended,
# deadlock or serialization failure, too little memory or too few connections, lock not obtained in time, cancelled by
# somebody, shutdown
POSTGRES_TRANSIENT = ("08", "25006", "25P03", "40", "53200", "53300", "55P03", "57014", "57P")


class MigrationError(Exception):
    """The migration cannot go on. The text says what happened, what is safe and what to do next."""


class BusyError(MigrationError):
    """Try again later: the cluster is busy or a connection was lost, and nothing is wrong with the work."""


class WaitError(BusyError):
    """Nothing failed: the wait is long, so the worker slot is better used elsewhere meanwhile."""


class Reaction(StrEnum):
    SPLIT = "split"
    RETRY = "retry"
    FAIL = "fail"


def reaction(error: BaseException) -> Reaction:
    """What to do after a failure, by ClickHouse's code if there is one.

    A failure without a code never reached the server, was cut off in the middle of an answer, or is an HTTP error: the
    server, or a proxy in front of it, refused the request.
    """
    if isinstance(error, BusyError):
        return Reaction.RETRY
    if isinstance(error, MigrationError):
        return Reaction.FAIL
    if isinstance(error, ClickHouseFailure):
        if error.code == MEMORY_LIMIT_EXCEEDED:
            return Reaction.SPLIT if QUERY_LIMIT.search(str(error)) else Reaction.RETRY
        if is_time_limit(error):
            return Reaction.SPLIT
        if error.code is None:
            lost = type(error) in (DatabaseError, OperationalError, StreamFailureError)
            lost = lost and not REFUSED.search(str(error))
            return Reaction.RETRY if lost else Reaction.FAIL
        return Reaction.RETRY if error.code in TRANSIENT else Reaction.FAIL
    if isinstance(error, psycopg.Error):
        lost = error.sqlstate is None and isinstance(error, psycopg.OperationalError)
        return Reaction.RETRY if lost or (error.sqlstate or "").startswith(POSTGRES_TRANSIENT) else Reaction.FAIL
    return Reaction.RETRY if isinstance(error, ConnectionError | TimeoutError) else Reaction.FAIL


def is_time_limit(error: BaseException) -> bool:
    """Whether a statement met the time limit of the ClickHouse user, so that a smaller statement may pass."""
    code = error.code if isinstance(error, ClickHouseFailure) else None
    return code in TIME_LIMITS and bool(OWN_TIME_LIMIT.search(str(error)))


def uncut(error: BaseException) -> Reaction:
    """What to do if a statement cannot be cut smaller: try again later, when a less busy server may finish in time."""
    return Reaction.RETRY if is_time_limit(error) else reaction(error)


def waits(error: BaseException) -> bool:
    """Whether the failure passes by itself but not soon, such as a used-up quota or too few replicas.

    Waiting for it uses up no try.
    """
    if not isinstance(error, ClickHouseFailure):
        return isinstance(error, WaitError)
    if error.code == KEEPER_FAILED:
        return bool(KEEPER_PASSES.search(str(error)))
    return error.code == QUOTA_EXCEEDED or error.code in WAITED_FOR


SAFE = "What is finished is kept and reads stay as they are."
WAITS = "This passes, and then the task goes on by itself."
NEXT_STEP = {
    Reaction.SPLIT: "A statement that cannot be cut smaller does not fit: trigger the run again with a greater "
    "max_memory_usage.",
    Reaction.RETRY: "This passes, and Airflow tries again; if it has given up, trigger the run again.",
    Reaction.FAIL: "Remove the cause and trigger the run again: it does only what is missing.",
}
RIGHTS = (
    "Give the Postgres role what docs/runbook.md lists, and BYPASSRLS if row security hides rows from it; then "
    "trigger the run again: it does only what is missing."
)
LONGER = "Airflow tries again; if that does not help, give the ClickHouse user a greater max_execution_time."
QUOTA = "It goes on by itself when the quota's interval is over; a larger quota ends it sooner."


def next_step(error: BaseException) -> str:
    """What a person should do after a database failure that a smaller statement would not avoid."""
    if is_time_limit(error):
        return LONGER
    if waits(error):
        return QUOTA if isinstance(error, ClickHouseFailure) and error.code == QUOTA_EXCEEDED else WAITS
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return RIGHTS
    return NEXT_STEP[reaction(error)]


@contextmanager
def naming_failures(what: str) -> Iterator[None]:
    """Turns a database failure into our own error, which says what was stopped, what is safe and what to do next."""
    try:
        yield
    except (ClickHouseFailure, psycopg.Error) as error:
        if waits(error):
            raise WaitError(f"{what} waits: {describe(error)} {SAFE} {next_step(error)}") from error
        kind = BusyError if uncut(error) is Reaction.RETRY else MigrationError
        raise kind(f"{what} was stopped: {describe(error)} {SAFE} {next_step(error)}") from error


def visible(text: str) -> str:
    """The text with escapes for what is invisible, steers a terminal or turns the direction of what follows, and for
    NUL, which Postgres refuses: a database may quote an id that a client has made."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def describe(error: BaseException) -> str:
    """Our own errors in full; the first line of others, with ClickHouse's code and name if there are any.

    The migration page looks for the words "does not answer" to tell that a database is away.
    """
    if isinstance(error, MigrationError):
        return str(error)
    text = visible((str(error).strip() or type(error).__name__).splitlines()[0])[:LONGEST_TEXT]
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        return f"Postgres does not answer: {text}"
    if isinstance(error, ClickHouseFailure) and error.code is None and reaction(error) is Reaction.RETRY:
        return f"ClickHouse does not answer: {text}"
    if not isinstance(error, ClickHouseFailure) or error.code is None:
        return text
    return f"ClickHouse error {error.code} ({error.name}): {text}"
