"""What a failure means for the migration: split the slice, try again later, or stop.

ClickHouse's codes are those of its ErrorCodes.cpp. Code 241 has one code and several meanings, so its
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

TRANSIENT = {
    159: "the statement ran into its time limit",
    202: "too many statements run at the same time",
    203: "no free connection",
    209: "the network timed out",
    210: "the network failed",
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
    425: "the operating system failed a call",
    517: "another change of the table is under way",
    667: "the replica has not begun yet",
    733: "the table is being restarted",
    999: "Keeper failed",
}
WAITED_FOR = {225, 236, 242, 244, 252, 285, 286, 289, 319, 341, 667, 733}
"""Of those, what replicas, Keeper and merges will do by themselves: it is waited for, and takes no try."""
KEEPER_FAILED = 999
KEEPER_PASSES = re.compile(r"connection|session|timeout|timed out|tries failed", re.IGNORECASE)
"""In the text of a failure of Keeper's: it could not be reached. Others tell of what is in it."""
REFUSED = re.compile(r"HTTP status (?!408|425|429)4\d\d")
"""A request that its sender must change; clickhouse-connect's words where ClickHouse gives no code."""

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
    """Decides by ClickHouse's code where there is one. A failure without a code never reached the server, or is HTTP's:
    the server, or a proxy before it, refused the request.
    """
    if isinstance(error, BusyError):
        return Reaction.RETRY
    if isinstance(error, MigrationError):
        return Reaction.FAIL
    if isinstance(error, ClickHouseFailure):
        if error.code == MEMORY_LIMIT_EXCEEDED:
            return Reaction.SPLIT if _is_query_limit(str(error)) else Reaction.RETRY
        if error.code is None:
            lost = type(error) in (DatabaseError, OperationalError) and not REFUSED.search(str(error))
            return Reaction.RETRY if lost else Reaction.FAIL
        return Reaction.RETRY if error.code in TRANSIENT else Reaction.FAIL
    if isinstance(error, psycopg.OperationalError):
        passing = error.sqlstate is None or error.sqlstate.startswith(POSTGRES_TRANSIENT)
        return Reaction.RETRY if passing else Reaction.FAIL
    return Reaction.RETRY if isinstance(error, ConnectionError | TimeoutError) else Reaction.FAIL


def waits(error: BaseException) -> bool:
    """Whether what stopped the work is another's to end, as a lack of replicas is: then no try is used up."""
    if isinstance(error, ClickHouseFailure) and error.code == KEEPER_FAILED:
        return bool(KEEPER_PASSES.search(str(error)))
    return isinstance(error, WaitError) or (isinstance(error, ClickHouseFailure) and error.code in WAITED_FOR)


SAFE = "What is finished is kept and reads stay as they are."
WAITS = "This passes, and the task goes on by itself then."
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
        if waits(error):
            raise WaitError(f"{what} waits: {describe(error)} {SAFE} {WAITS}") from error
        kind = BusyError if react is Reaction.RETRY else MigrationError
        raise kind(f"{what} was stopped: {describe(error)} {SAFE} {NEXT_STEP[react]}") from error


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
