"""The one place that tells Airflow which failures a retry can help."""

import logging
import random
from datetime import timedelta

from airflow.sdk import RetryPolicy
from airflow.sdk.definitions.context import Context
from airflow.sdk.definitions.retry_policy import RetryDecision
from airflow.sdk.exceptions import AirflowException

from pdi2.core.failures import NEXT_STEP, SAFE, BusyError, MigrationError, Reaction, describe, reaction

log = logging.getLogger(__name__)

FIRST_DELAY = timedelta(seconds=15)
LONGEST_DELAY = timedelta(minutes=10)
RETRIES = 6
EXHAUSTED = (
    f"Retries are exhausted. {SAFE} Where memory was short, lower the slots of the pool pdi2_copies or "
    "max_memory_usage, or raise the server's or the user's limit; where the server was busy or away, wait until it is "
    "not. Then trigger the run again: it goes on from the last checkpoint."
)


class RetryWhatHelps(RetryPolicy):
    """Later, with a growing, jittered delay, for a busy cluster or a lost connection; never for the rest."""

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        react = reaction(exception)
        if react is not Reaction.RETRY:
            told = isinstance(exception, MigrationError)
            next_step = "The error itself says what to do." if told else f"{SAFE} {NEXT_STEP[react]}"
            return RetryDecision.fail(f"A retry cannot help. {next_step}")
        if try_number > max_tries:
            return RetryDecision.fail(EXHAUSTED)
        delay = min(FIRST_DELAY * 2 ** (try_number - 1), LONGEST_DELAY) * random.uniform(0.75, 1.25)  # noqa: S311
        return RetryDecision.retry(
            delay, f"Try {try_number} met a passing failure, and Airflow tries again: {describe(exception)}"
        )


def last_words(context: Context) -> None:
    """What happens next, or what to do, as the last line of a failed task's log: the callback of a failure and a retry.

    Airflow 3.3 writes a policy's reason into the group that it folds around the traceback, and ends that group after
    this callback. So the group ends here; Airflow's page shows nothing of an end that ends nothing.
    """
    exception, ti = context.get("exception"), context["ti"]
    if not isinstance(exception, Exception) or isinstance(exception, AirflowException):
        return  # Airflow's own: it says so itself
    reason = RetryWhatHelps().evaluate(exception, ti.try_number, ti.max_tries, context).reason or ""
    log.info("::endgroup::")
    log.error(reason if describe(exception) in reason else f"{describe(exception)}\n{reason}")


def raise_together(failures: list[Exception]) -> None:
    """One failure as it is; several as one that can be retried if a retry helps any of them."""
    if len(failures) == 1:
        raise failures[0]
    if failures:
        kind = BusyError if any(reaction(one) is Reaction.RETRY for one in failures) else MigrationError
        raise kind("\n".join(describe(one) for one in failures))
