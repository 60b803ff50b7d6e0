"""What a failure means for the migration: split the slice, try again later, or stop.

ClickHouse's codes are those of its ErrorCodes.cpp. Codes 241 (memory) and 159 (time) have several meanings each, so the
text decides which limit was met (PostHog #31015).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

import psycopg
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError
from clickhouse_connect.driver.exceptions import Error as ClickHouseFailure

MEMORY_LIMIT_EXCEEDED = 241
LONGEST_TEXT = 500

TIME_LIMITS = (159, 160)
"""A statement ran for too long, or would (160: its estimate or its speed). What waits for a replica is 159 too."""
OWN_TIME_LIMIT = re.compile("Timeout exceeded: elapsed|Estimated query execution time|executing too slow")
QUOTA_EXCEEDED = 201

TRANSIENT = {
    159: "a replica or a lock was waited for in vain",
    201: "the user's quota is used up until its interval ends",
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
    439: "no thread is free",
    473: "another statement holds a lock",
    700: "the user has too many sessions",
    745: "the server is overloaded",
    999: "Keeper failed",
}

# SQLSTATE classes: connection failure, an idle transaction was ended, deadlock or serialization, too little memory or
# connections, a lock was not to be had in time, shutdown
POSTGRES_TRANSIENT = ("08", "25P03", "40", "53200", "53300", "55P03", "57P")


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
        if is_time_limit(error):
            return Reaction.SPLIT
        if error.code is None:
            return Reaction.RETRY if type(error) in (DatabaseError, OperationalError) else Reaction.FAIL
        return Reaction.RETRY if error.code in TRANSIENT else Reaction.FAIL
    if isinstance(error, psycopg.Error):
        lost = error.sqlstate is None and isinstance(error, psycopg.OperationalError)
        return Reaction.RETRY if lost or (error.sqlstate or "").startswith(POSTGRES_TRANSIENT) else Reaction.FAIL
    return Reaction.RETRY if isinstance(error, ConnectionError | TimeoutError) else Reaction.FAIL


def is_time_limit(error: BaseException) -> bool:
    """Whether a statement met the time limit of the ClickHouse user: a smaller one takes less."""
    code = error.code if isinstance(error, ClickHouseFailure) else None
    return code in TIME_LIMITS and bool(OWN_TIME_LIMIT.search(str(error)))


def uncut(error: BaseException) -> Reaction:
    """What to do where no statement can be cut smaller: it may keep to its time when the server is less busy."""
    return Reaction.RETRY if is_time_limit(error) else reaction(error)


def waits(error: BaseException) -> bool:
    """Whether it passes by itself, but not soon: no try should be used up."""
    return isinstance(error, WaitError) or (isinstance(error, ClickHouseFailure) and error.code == QUOTA_EXCEEDED)


SAFE = "What is finished is kept and reads stay as they are."
NEXT_STEP = {
    Reaction.SPLIT: "A statement that cannot be cut smaller does not fit: trigger the run again with a greater "
    "max_memory_usage.",
    Reaction.RETRY: "This passes, and Airflow tries again; where it has given up, trigger the run again.",
    Reaction.FAIL: "Remove the cause and trigger the run again: it does only what is missing.",
}
LONGER = "Airflow tries again; if it stays so, give the ClickHouse user a greater max_execution_time."
QUOTA = "It goes on by itself when the quota's interval is over; a greater quota makes it sooner."


def next_step(error: BaseException) -> str:
    """What somebody is to do after an engine's failure that no smaller statement avoids."""
    if is_time_limit(error):
        return LONGER
    return QUOTA if waits(error) else NEXT_STEP[reaction(error)]


@contextmanager
def told_of(what: str) -> Iterator[None]:
    """Raises an engine's failure as ours: what it stopped, what is safe, what to do next."""
    try:
        yield
    except (ClickHouseFailure, psycopg.Error) as error:
        kind: type[MigrationError] = BusyError if uncut(error) is Reaction.RETRY else MigrationError
        if waits(error):
            kind = WaitError
        raise kind(f"{what} was stopped: {describe(error)} {SAFE} {next_step(error)}") from error


def _is_query_limit(text: str) -> bool:
    return "Query memory limit" in text or "(for query)" in text


def describe(error: BaseException) -> str:
    """Ours in full; of others the first line, with ClickHouse's code and name where there are any."""
    if isinstance(error, MigrationError):
        return str(error)
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:LONGEST_TEXT]
    if not isinstance(error, ClickHouseFailure) or error.code is None:
        return text
    return f"ClickHouse error {error.code} ({error.name}): {text}"
