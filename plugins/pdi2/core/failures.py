"""What a failure means for the migration: split the slice, try again later, or stop.

ClickHouse's codes are those of its ErrorCodes.cpp. Code 241 has one code and several meanings, so its
text decides which limit was met (PostHog #31015).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

import psycopg
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError
from clickhouse_connect.driver.exceptions import Error as ClickHouseFailure

MEMORY_LIMIT_EXCEEDED = 241
LONGEST_TEXT = 500

TRANSIENT = {
    159: "the statement ran into its time limit",
    202: "too many statements run at the same time",
    203: "no free connection",
    209: "the network timed out",
    210: "the network failed",
    225: "Keeper cannot be reached",
    242: "the table is read-only for now",
    252: "the table has too many parts; merges must catch up",
    285: "too few replicas are alive",
    289: "the replica lags behind the others",
    319: "the fate of an insert is unknown",
    341: "a mutation waits for a replica that is away",
    425: "the operating system failed a call",
    999: "Keeper failed",
}

# SQLSTATE classes: connection failure, deadlock or serialization, too little memory or connections, shutdown
POSTGRES_TRANSIENT = ("08", "40", "53200", "53300", "57P")


class MigrationError(Exception):
    """The migration cannot go on. The text says what happened, what is safe and what to do next."""


class BusyError(MigrationError):
    """Try again later: the cluster is busy or a connection was lost, and nothing is wrong with the work."""


class WaitError(BusyError):
    """Nothing failed: the wait is long, and the worker slot is better used elsewhere meanwhile."""


class Reaction(StrEnum):
    SPLIT = "split"
    RETRY = "retry"
    FAIL = "fail"


def reaction(error: BaseException) -> Reaction:
    """Decides by ClickHouse's code where there is one; a failure without a code never reached the server."""
    if isinstance(error, BusyError):
        return Reaction.RETRY
    if isinstance(error, MigrationError):
        return Reaction.FAIL
    if isinstance(error, ClickHouseFailure):
        if error.code == MEMORY_LIMIT_EXCEEDED:
            return Reaction.SPLIT if _is_query_limit(str(error)) else Reaction.RETRY
        if error.code is None:
            return Reaction.RETRY if type(error) in (DatabaseError, OperationalError) else Reaction.FAIL
        return Reaction.RETRY if error.code in TRANSIENT else Reaction.FAIL
    if isinstance(error, psycopg.OperationalError):
        passing = error.sqlstate is None or error.sqlstate.startswith(POSTGRES_TRANSIENT)
        return Reaction.RETRY if passing else Reaction.FAIL
    return Reaction.RETRY if isinstance(error, ConnectionError | TimeoutError) else Reaction.FAIL


SAFE = "What is finished is kept and reads stay as they are."
NEXT_STEP = {
    Reaction.SPLIT: "A statement that cannot be cut smaller does not fit: trigger the run again with a greater "
    "max_memory_usage.",
    Reaction.RETRY: "This passes, and Airflow tries again; where it has given up, trigger the run again.",
    Reaction.FAIL: "Remove the cause and trigger the run again: it does only what is missing.",
}


@contextmanager
def told_of(what: str) -> Iterator[None]:
    """Raises an engine's failure as ours: what it stopped, what is safe, what to do next."""
    try:
        yield
    except (ClickHouseFailure, psycopg.Error) as error:
        react = reaction(error)
        kind = BusyError if react is Reaction.RETRY else MigrationError
        raise kind(f"{what} was stopped: {describe(error)} {SAFE} {NEXT_STEP[react]}") from error


def _is_query_limit(text: str) -> bool:
    return "Query memory limit" in text or "(for query)" in text


def describe(error: BaseException) -> str:
    """Ours in full; of others the first line, with ClickHouse's code and name where there are any.

    The migration page knows an engine that is away by "does not answer".
    """
    if isinstance(error, MigrationError):
        return str(error)
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:LONGEST_TEXT]
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        return f"Postgres does not answer: {text}"
    if isinstance(error, ClickHouseFailure) and error.code is None and reaction(error) is Reaction.RETRY:
        return f"ClickHouse does not answer: {text}"
    if not isinstance(error, ClickHouseFailure) or error.code is None:
        return text
    return f"ClickHouse error {error.code} ({error.name}): {text}"
