"""The one place that tells Airflow which failures a retry can help."""

import random
from datetime import timedelta

from airflow.sdk import RetryPolicy
from airflow.sdk.definitions.context import Context
from airflow.sdk.definitions.retry_policy import RetryDecision

from pdi2.core.failures import SAFE, BusyError, MigrationError, Reaction, describe, next_step, uncut, waits

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
        if uncut(exception) is not Reaction.RETRY:
            told = isinstance(exception, MigrationError)
            then = "The error above says what to do." if told else f"{SAFE} {next_step(exception)}"
            return RetryDecision.fail(f"A retry cannot help. {then}")
        if try_number > max_tries:
            return RetryDecision.fail(EXHAUSTED)
        delay = LONGEST_DELAY if waits(exception) else min(FIRST_DELAY * 2 ** (try_number - 1), LONGEST_DELAY)
        delay *= random.uniform(0.75, 1.25)  # noqa: S311
        return RetryDecision.retry(delay, f"Try {try_number} met a passing failure: {describe(exception)}")


def raise_together(failures: list[Exception]) -> None:
    """One failure as it is; several as one that can be retried if a retry helps any of them."""
    if len(failures) == 1:
        raise failures[0]
    if failures:
        kind = BusyError if any(uncut(one) is Reaction.RETRY for one in failures) else MigrationError
        raise kind("\n".join(describe(one) for one in failures))
