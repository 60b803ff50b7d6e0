"""Airflow without RetryPolicy (3.1, 3.2): the tasks make the same decisions themselves. Run by `make test-airflow`."""

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from pdi2.core.engines.failures import BusyError, MigrationError
from pdi2.edge import retries
from pdi2.edge.compat import RetryPolicy

pytestmark = pytest.mark.skipif(RetryPolicy is not None, reason="this Airflow has a RetryPolicy")


def raising(error: Exception) -> Any:
    @retries.task
    def work() -> None:
        raise error

    return work.function


@pytest.mark.parametrize("error", [MigrationError("It is wrong. Mend it."), KeyError("a bug")])
def test_what_a_retry_cannot_help_fails_at_once(error: Exception) -> None:
    with pytest.raises(AirflowFailException, match="A retry cannot help"):
        raising(error)()


@pytest.mark.parametrize("error", [BusyError("It is busy."), ConnectionError("lost")])
def test_what_passes_is_tried_again(error: Exception) -> None:
    with pytest.raises(type(error)):
        raising(error)()


def test_tries_come_ever_later() -> None:
    assert retries.RETRY_ARGS["retry_exponential_backoff"]
    assert retries.RETRY_ARGS["max_retry_delay"] == retries.LONGEST_DELAY
