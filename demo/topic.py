"""Kafka and its ClickHouse consumers, as far as an application notices: delivery at least once, late, in batches."""

import collections
import math
import random
import threading
import time
from collections.abc import Callable

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import Error as ClickHouseFailure

from demo.schema import Table
from demo.writer import Message, deliver

DUPLICATED = 0.03
"""The share of batches that arrive twice."""
LATE = 0.1
"""The share of batches that are held back for another flush, so that the two tables get out of step."""
AGAIN_SECONDS = 0.2

Key = tuple[int, str]


class Topic(threading.Thread):
    """One writer's messages to one table, and their consumer: in order, in batches, at least once."""

    def __init__(self, table: Table, connect: Callable[[], Client], seed: str, flush_seconds: float) -> None:
        super().__init__(daemon=True)
        self.table, self.connect, self.flush_seconds = table, connect, flush_seconds
        self.chance = random.Random(f"{seed} {table}")
        self.queue: collections.deque[tuple[float, Message]] = collections.deque()
        """Messages that may not have arrived yet, each with the time.monotonic() before its change."""
        self.repeated: set[Key] = set()
        """Ids for which a message was sent more than once."""
        self.counts: collections.Counter[str] = collections.Counter()
        self.ending = threading.Event()

    def oldest(self) -> float:
        """When the oldest change that has not arrived was made; infinite if all have arrived."""
        try:
            return self.queue[0][0]
        except IndexError:
            return math.inf

    def run(self) -> None:
        while self.queue or not self.ending.is_set():
            flushes = self.chance.uniform(0.5, 1.5) + (self.chance.random() < LATE)
            self.ending.wait(flushes * self.flush_seconds)
            if batch := [message for _, message in list(self.queue)]:
                self._deliver(batch)
                for _ in batch:
                    self.queue.popleft()

    def _deliver(self, batch: list[Message]) -> None:
        times = 1 + (self.chance.random() < DUPLICATED)
        while times:
            if times > 1:
                self._repeat(batch)
            try:
                with self.connect() as clickhouse:
                    deliver(clickhouse, batch)
                times -= 1
            except ClickHouseFailure:  # the batch may have arrived all the same
                self.counts["failed_inserts"] += 1
                self._repeat(batch)
                time.sleep(AGAIN_SECONDS)
        self.counts[f"rows of {self.table}"] += len(batch)

    def _repeat(self, batch: list[Message]) -> None:
        self.counts["repeated_inserts"] += 1
        self.repeated |= {message.key for message in batch}
