"""`python -m demo traffic`: the application under load, in separate processes, over the wire protocols.

Writers change Postgres and deliver to ClickHouse at least once, late and in batches; a reader checks every answer
against Postgres. It goes on through restarts of either database, until SIGINT, SIGTERM or `seconds` are over. SIGHUP
restarts the reader, as an operator does after a rollback, because a process remembers a completed migration for ever.
"""

import collections
import json
import logging
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any, TypeVar

import clickhouse_connect
import psycopg
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import Error as ClickHouseFailure

from demo.live_reader import LiveReader
from demo.live_writer import Habits, LiveWriter

PROCESSES = multiprocessing.get_context("spawn")
Made = TypeVar("Made")
LOOKS_A_SECOND = 4
IDLE_SECONDS = 0.05
END_WITHIN_SECONDS = 60.0
PASSWORD = "CLICKHOUSE_PASSWORD"  # an environment variable, because everybody can see arguments


@dataclass(frozen=True)
class Databases:
    """Where the application's two databases are."""

    postgres: str
    clickhouse: dict[str, Any]

    def connect_postgres(self) -> psycopg.Connection:
        return psycopg.connect(self.postgres, autocommit=True)

    def connect_clickhouse(self) -> Client:
        return clickhouse_connect.get_client(**self.clickhouse, password=os.environ.get(PASSWORD, ""))


@dataclass(frozen=True)
class Shared:
    """What the processes share: when writers begin and stop, the low-water mark of each, and where results go."""

    writers_begin: Barrier
    """Writers begin once each has adopted its ids, so that none takes an id that another has just created for old."""
    writers_stop: Event
    low_water: Any
    results: Any


def write(databases: Databases, shared: Shared, number: int, rate: float, options: dict[str, Any]) -> None:
    """One writer process."""
    _live_quietly()
    make = partial(LiveWriter, databases.connect_postgres, databases.connect_clickhouse, number=number, **options)
    writer = _made(make)
    shared.writers_begin.wait()
    began = due = time.monotonic()
    while _goes_on(shared.writers_stop):
        now = time.monotonic()
        shared.low_water[number] = writer.low_water()
        if now < due:
            time.sleep(min(due - now, IDLE_SECONDS))
        else:
            due = max(due + 1 / rate, now - 1)  # does not make up for the time of an outage
            writer.step()
    seconds = time.monotonic() - began
    undelivered = writer.end(END_WITHIN_SECONDS)
    shared.results.put(
        {"writes_a_second": round(writer.counts["writes"] / seconds, 1), "undelivered": undelivered, **writer.counts}
    )


def read(databases: Databases, shared: Shared, stops: Event, cache_seconds: float, seed: int) -> None:
    """The reader process."""
    _live_quietly()
    make = partial(LiveReader, databases.connect_postgres, databases.connect_clickhouse)
    reader = _made(partial(make, cache_seconds=cache_seconds, seed=seed))
    while _goes_on(stops):
        reader.step(min(shared.low_water))
        time.sleep(1 / LOOKS_A_SECOND)
    if shared.writers_stop.is_set():
        reader.end()
    shared.results.put({**reader.counts, "examples": reader.wrong, "read_since": reader.tables})


def _made(make: Callable[[], Made]) -> Made:
    """What `make` makes, as soon as both databases are up."""
    while True:
        with suppress(psycopg.OperationalError, ClickHouseFailure):
            return make()
        time.sleep(IDLE_SECONDS)


def _live_quietly() -> None:
    """Leave Ctrl-C to the parent, and log nothing when a database is away: the counts show that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)


def _goes_on(stop: Event) -> bool:
    parent = multiprocessing.parent_process()
    return not stop.is_set() and parent is not None and parent.is_alive()


class Traffic:
    """All processes of the traffic; `results` has the results of those that have ended."""

    def __init__(
        self,
        databases: Databases,
        *,
        rate: float,
        habits: list[Habits],
        cache_seconds: float,
        flush_seconds: float,
        seed: int,
    ) -> None:
        self.databases, self.cache_seconds, self.seed = databases, cache_seconds, seed
        self.shared = Shared(
            PROCESSES.Barrier(len(habits)), PROCESSES.Event(), PROCESSES.Array("d", len(habits)), PROCESSES.Queue()
        )
        self.results: list[dict[str, Any]] = []
        self.writers = []
        for number, habit in enumerate(habits):
            options = {"habits": habit, "processes": len(habits), "seed": seed, "flush_seconds": flush_seconds}
            self.writers.append(self._start(write, number, rate / len(habits), options))
        self._start_reader()

    def restart_reader(self) -> None:
        self._stop_reader()
        self._start_reader()

    def broken(self) -> bool:
        """Whether a process ended before it was asked to."""
        return any(process.exitcode is not None for process in [*self.writers, self.reader])

    def end(self) -> bool:
        """Stop changes, let everything arrive and be read once more. Returns whether all processes ended well."""
        self.shared.writers_stop.set()
        for writer in self.writers:
            self._take_result(writer)
        self._stop_reader()
        return all(process.exitcode == 0 for process in [*self.writers, self.reader])

    def _start_reader(self) -> None:
        self.reader_stops = PROCESSES.Event()
        self.reader = self._start(read, self.reader_stops, self.cache_seconds, self.seed)

    def _stop_reader(self) -> None:
        self.reader_stops.set()
        self._take_result(self.reader)

    def _start(self, work: Callable[..., None], *arguments: Any) -> BaseProcess:
        process = PROCESSES.Process(target=work, args=(self.databases, self.shared, *arguments), daemon=True)
        process.start()
        return process

    def _take_result(self, process: BaseProcess) -> None:
        """Take one result, of any process: each puts one when it ends, and another's may come before this one's."""
        deadline = time.monotonic() + 2 * END_WITHIN_SECONDS
        while time.monotonic() < deadline:
            with suppress(queue.Empty):
                self.results.append(self.shared.results.get(timeout=IDLE_SECONDS))
                break
            if process.exitcode:
                break
        process.join(END_WITHIN_SECONDS)


def run(
    *,
    postgres: str,
    clickhouse_host: str,
    clickhouse_port: int,
    clickhouse_user: str,
    clickhouse_database: str,
    rate: float,
    writers: int,
    also: list[str],
    seconds: float,
    cache_seconds: float,
    flush_seconds: float,
    seed: int,
) -> int:
    """Returns 1 if a wrong answer was read, a message could not be delivered, or a process broke."""
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: asked.append(number))
    habits = [Habits(cache_seconds)] * writers + [Habits.parse(text) for text in also]
    began = time.monotonic()
    clickhouse = {
        "host": clickhouse_host, "port": clickhouse_port, "username": clickhouse_user, "database": clickhouse_database,
    }  # fmt: skip
    traffic = Traffic(
        Databases(postgres, clickhouse),
        rate=rate, habits=habits, cache_seconds=cache_seconds, flush_seconds=flush_seconds, seed=seed,
    )  # fmt: skip
    print(f"Traffic: {rate:g} writes per second by {len(habits)} processes, and a reader", flush=True)
    while time.monotonic() - began < seconds and not traffic.broken() and not {*asked} - {signal.SIGHUP}:
        time.sleep(IDLE_SECONDS)
        if signal.SIGHUP in asked:
            asked.remove(signal.SIGHUP)
            traffic.restart_reader()
    sound = traffic.end()
    report = {"seconds": round(time.monotonic() - began, 1), "sound": sound, **_together(traffic.results)}
    print(json.dumps(report, indent=2, ensure_ascii=False), flush=True)
    return 0 if sound and not report["wrong"] and not report["undelivered"] else 1


def _together(results: list[dict[str, Any]]) -> dict[str, Any]:
    counts: collections.Counter[str] = collections.Counter({"writes": 0, "reads": 0, "wrong": 0, "undelivered": 0})
    lists: dict[str, list[Any]] = {"examples": [], "read_since": []}
    for result in results:
        for name, value in result.items():
            if name in lists:
                lists[name] += value
            else:
                counts[name] += value
    return {**counts, **lists}


@dataclass(frozen=True)
class Running:
    """`python -m demo traffic` in its own process."""

    process: subprocess.Popen[str]

    def restart_reader(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def end(self) -> dict[str, Any]:
        """Its summary, once everything has arrived and was read. Raises CalledProcessError if it gives none."""
        self.process.send_signal(signal.SIGTERM)
        text, _ = self.process.communicate()
        if not text:
            raise subprocess.CalledProcessError(self.process.returncode, self.process.args)
        return json.loads(text)


@contextmanager
def running(postgres: str, clickhouse_port: int, password: str = "", **options: Any) -> Iterator[Running]:
    """Start traffic; `options` are those of the command line, with a list for an option that is given several times."""
    options = {"postgres": postgres, "clickhouse_port": clickhouse_port, **options}
    command = [sys.executable, "-m", "demo", "traffic"]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            command += [f"--{name.replace('_', '-')}", str(one)]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parent.parent,
        env=os.environ | {PASSWORD: password},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout
        if not process.stdout.readline():
            raise subprocess.CalledProcessError(process.wait(), command)
        yield Running(process)
    finally:
        if process.poll() is None:  # an ended process's id may belong to another one
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
