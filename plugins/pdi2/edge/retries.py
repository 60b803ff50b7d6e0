"""The one place that tells Airflow which failures to retry."""

import logging
import random
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowNotFoundException
from airflow.sdk import task as airflow_task
from airflow.sdk.exceptions import AirflowRuntimeError

from pdi2.core.engines.failures import SAFE, BusyError, MigrationError, Reaction, describe, next_step, uncut, waits
from pdi2.edge.compat import RetryPolicy

log = logging.getLogger(__name__)

OF_AIRFLOW = (AirflowNotFoundException, AirflowRuntimeError)
FIRST_DELAY = timedelta(seconds=15)
LONGEST_DELAY = timedelta(minutes=10)
RETRIES = 6
EXHAUSTED = (
    f"Retries are exhausted. {SAFE} If memory was short, lower the slots of the pool pdi2_copies or "
    "max_memory_usage, or raise the server's or the user's limit; if the server was busy or away, wait until it is "
    "back. Then trigger the run again: it goes on from the last checkpoint."
)


def why_no_retry(error: BaseException) -> str | None:
    """Why a retry cannot help, and what to do instead; None if it may help.

    A retry may help after Airflow's own failures, because Airflow says that a connection does not exist whenever the
    secrets backend or the API server did not answer. A task that took too long goes on from its checkpoint.
    """
    if isinstance(error, OF_AIRFLOW) or not isinstance(error, Exception) or uncut(error) is Reaction.RETRY:
        return None
    ours = isinstance(error, MigrationError)
    then = "The error itself says what to do." if ours else f"{SAFE} {next_step(error)}"
    return f"A retry cannot help. {then}"


if RetryPolicy is not None:
    from airflow.sdk.definitions.context import Context
    from airflow.sdk.definitions.retry_policy import RetryDecision

    class RetryWhatHelps(RetryPolicy):
        """Retries what may pass: after a growing, jittered delay, or after ten minutes if it passes slowly."""

        def evaluate(
            self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
        ) -> RetryDecision:
            if reason := why_no_retry(exception):
                return RetryDecision.fail(reason)
            if try_number > max_tries:
                return RetryDecision.fail(EXHAUSTED)
            delay = LONGEST_DELAY if waits(exception) else min(FIRST_DELAY * 2 ** (try_number - 1), LONGEST_DELAY)
            delay *= random.uniform(0.75, 1.25)  # noqa: S311
            return RetryDecision.retry(
                delay, f"Try {try_number} met a failure that may pass, and Airflow tries again: {describe(exception)}"
            )

    def last_words(context: Context) -> None:
        """Ends a failed task's log with what happens next or what to do. Called after failures and before retries.

        Airflow 3.3 writes a policy's reason into the log group that it collapses around the traceback, and ends that
        group after this callback. So the group is ended here; Airflow's page does not show the second end.
        """
        exception, ti = context.get("exception"), context["ti"]
        if not isinstance(exception, Exception) or isinstance(exception, AirflowException):
            return  # Airflow logs its own exceptions itself
        reason = RetryWhatHelps().evaluate(exception, ti.try_number, ti.max_tries, context).reason or ""
        log.info("::endgroup::")
        log.error(reason if describe(exception) in reason else f"{describe(exception)}\n{reason}")

    def deciding(function: Callable[..., Any]) -> Callable[..., Any]:
        return function  # the policy decides

    task: Any = airflow_task
    RETRY_ARGS: dict[str, Any] = {
        "retries": RETRIES,
        "execution_timeout": None,
        "retry_policy": RetryWhatHelps(),
        "retry_delay": FIRST_DELAY,
        "on_failure_callback": last_words,
        "on_retry_callback": last_words,
    }
else:

    class Deciding:
        """Airflow's `task` before 3.3: fails at once if a retry cannot help, or retries after ever longer waits."""

        def __init__(self, decorator: Any) -> None:
            self.decorator = decorator

        def __getattr__(self, kind: str) -> "Deciding":
            return Deciding(getattr(self.decorator, kind))

        def __call__(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
            if function is None:
                return lambda function: self.decorator(**options)(deciding(function))
            return self.decorator(deciding(function))

    def deciding(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def decided(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except AirflowException:
                raise
            except Exception as error:
                if reason := why_no_retry(error):
                    raise AirflowFailException(f"{describe(error)} {reason}") from error
                raise

        return decided

    task = Deciding(airflow_task)
    RETRY_ARGS = {
        "retries": RETRIES,
        "execution_timeout": None,
        "retry_delay": FIRST_DELAY,
        "retry_exponential_backoff": True,
        "max_retry_delay": LONGEST_DELAY,
    }


def raise_together(failures: list[Exception]) -> None:
    """Raises one failure as it is, and several as one error, which is retried if a retry helps any of them."""
    if len(failures) == 1:
        raise failures[0]
    if failures:
        kind = BusyError if any(why_no_retry(one) is None for one in failures) else MigrationError
        raise kind("\n".join(describe(one) for one in failures))
