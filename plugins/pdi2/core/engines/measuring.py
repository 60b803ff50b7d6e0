"""Measures what the statements of one client take: their seconds, and the most memory that one of them had."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from pdi2 import sql
from pdi2.core.engines.failures import describe

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
SMALLEST_PEAK = 1_000_000
"""In bytes. A lower figure means that the statement had not begun to work when it was looked at."""


@dataclass
class Cost:
    """What a series of statements took; peak_memory in bytes, None if they were too quick to be seen."""

    seconds: float = 0.0
    peak_memory: int | None = None


@contextmanager
def measured(connect: Callable[[], Client] | None, log_comment: str, set_aside: Callable[[], int]) -> Iterator[Cost]:
    """Measures the statements with this log comment; the figures are complete when the block ends.

    `connect` opens a second client, which looks at their memory; if it is None, that is not measured. `set_aside`
    returns how many bytes of memory are in use besides.
    """
    cost = Cost()
    done = threading.Event()

    def watch() -> None:
        """Reads system.processes with a second client, because chDB shows a statement's memory nowhere else."""
        if connect is None:
            return
        try:
            with connect() as client:
                while not done.wait(POLL_SECONDS):
                    seen = client.query(sql.clickhouse("peak_memory"), parameters={"log_comment": log_comment})
                    peak = max((row[0] for row in seen.result_rows), default=0)  # a profile's filter may leave no row
                    if peak > SMALLEST_PEAK:
                        cost.peak_memory = max(cost.peak_memory or 0, peak + set_aside())
        except ClickHouseError as error:  # if the work fails too, its own statement says so
            log.info("The memory of the statements is not measured further: %s", describe(error))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.monotonic()
    try:
        yield cost
    finally:
        cost.seconds = time.monotonic() - started
        done.set()
        watcher.join()
