"""What goes wrong during a soak: mishaps that a seed draws, and that happen to the databases or to the run."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from demo.clickhouse_server import Server
from demo.cluster import Replica
from demo.postgres import Postgres

TRAFFIC = "the traffic"
STATEMENTS = {
    "any statement": "",
    "the copy": r"INSERT INTO person_distinct_id2\w*\s+\(|ATTACH PARTITION",
    "the comparison": "SHA256",
    TRAFFIC: r"INSERT INTO \w+ FORMAT JSONEachRow",
}
"""The statements that are hit, as regular expressions."""

TOTAL = "(total) memory limit exceeded: would use 21.20 GiB, maximum: 21.00 GiB"
MISBEHAVIOURS: dict[str, dict[str, Any]] = {
    "ClickHouse refuses": {"action": "refuse"},
    "ClickHouse is slow": {"action": "delay"},
    "connection cut before the statement": {"action": "cut_before"},
    "connection cut after the statement": {"action": "cut_after"},
    "241, limit of the query": {"action": "error", "code": 241},
    "241, limit of the server": {"action": "error", "code": 241, "text": TOTAL},
    "159, timeout": {"action": "error", "code": 159},
    "202, too many queries": {"action": "error", "code": 202},
    "243, disk full": {"action": "error", "code": 243},
    "252, too many parts": {"action": "error", "code": 252},
}
DIES, RESTARTS, KILLED = "ClickHouse dies and comes back", "Postgres restarts", "the run is killed"
KINDS = [*MISBEHAVIOURS, DIES, RESTARTS, KILLED]
OTHER_DIES, OTHER_FREEZES = "the other replica dies and comes back", "the other replica freezes"
KEEPER_FREEZES, REFUSED = "Keeper freezes", "no replica sends its parts"
OF_REPLICAS = [OTHER_DIES, OTHER_FREEZES, KEEPER_FREEZES, REFUSED]
LONGER = 6
"""Mishaps of replicas last this many times longer: ClickHouse waits 10 s for Keeper before it ends the session."""
WAIT_SECONDS = 5.0
"""How long to wait for a statement at which ClickHouse should die. After that it is killed between two statements."""


@dataclass
class Scene:
    """What can be broken."""

    postgres: Postgres
    clickhouse: Server
    others: Sequence[Replica] = ()
    run: subprocess.Popen[bytes] | None = None
    """The process of the Airflow run, which leads a process group of its own."""

    def inject(self, statements: str, *faults: dict[str, Any]) -> None:
        """Replaces all faults. The migration uses the first server, the traffic the last."""
        chosen = self.others[-1] if self.others and statements == TRAFFIC else self.clickhouse
        for server in (self.clickhouse, *self.others):
            server.inject(*faults if server is chosen else ())

    def met(self) -> int:
        """How many statements the last misbehaviour has hit so far."""
        count = 0
        for server in (self.clickhouse, *self.others):
            with suppress(OSError):
                count += sum(fault["fired"] for fault in server.faults())
        return count


@dataclass(frozen=True)
class Mishap:
    kind: str
    statements: str
    times: int
    seconds: float

    def __str__(self) -> str:
        match self.kind:
            case "the run is killed":
                return f"{self.kind} (SIGKILL)"
            case kind if kind in OF_REPLICAS:
                return f"{kind} (for {self.seconds * LONGER:.0f} s)"
            case "Postgres restarts":
                return f"{self.kind} (away for {self.seconds} s)"
            case "ClickHouse dies and comes back":
                return f"{self.kind} (at {self.statements}, away for {self.seconds} s)"
            case "ClickHouse is slow":
                return f"{self.kind} ({self.statements}, {self.times} times {self.seconds} s)"
        return f"{self.kind} ({self.statements}, {self.times} times)"

    def happen(self, scene: Scene) -> str:
        """Makes it happen; returns what is known at once of its effect. Scene.met counts the statements that it hit."""
        if self.kind == KILLED:
            return kill(scene)
        if self.kind in OF_REPLICAS:
            return _strike_replicas(self.kind, scene, self.seconds * LONGER)
        if self.kind == RESTARTS:
            scene.postgres.stop()
            time.sleep(self.seconds)
            scene.postgres.start()
            return "every session was cut"
        where = {"match": STATEMENTS[self.statements], "times": self.times}
        if self.kind == DIES:
            return _die(scene, where, self.seconds)
        scene.inject(self.statements, {**where, "seconds": self.seconds, **MISBEHAVIOURS[self.kind]})
        return ""


def drawn(seed: int, count: int, *, replicas: bool = False) -> list[Mishap]:
    """Mishaps, the same for the same seed. Every kind comes once before any comes again."""
    chance = random.Random(seed)
    kinds: list[str] = []
    known = KINDS + (OF_REPLICAS if replicas else [])
    while len(kinds) < count:
        kinds += chance.sample(known, len(known))
    return [
        Mishap(
            kind,
            statements=chance.choices(list(STATEMENTS), [3, 2, 2, 1])[0],
            times=chance.randint(1, 5),
            seconds=round(chance.uniform(0.2, 3), 1),
        )
        for kind in kinds[:count]
    ]


def kill(scene: Scene) -> str:
    if scene.run is None or scene.run.poll() is not None:
        return "no run was at work"
    os.killpg(scene.run.pid, signal.SIGKILL)
    scene.run.wait()
    return "the run is dead"


def _strike_replicas(kind: str, scene: Scene, seconds: float) -> str:
    [other, *_] = scene.others
    keeper = other.zookeeper
    assert keeper
    turns: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        OTHER_DIES: (other.kill, other.start),
        OTHER_FREEZES: (other.freeze, other.thaw),
        KEEPER_FREEZES: (keeper.freeze, keeper.thaw),
        REFUSED: (partial(_exchange, scene, refuse=True), partial(_exchange, scene, refuse=False)),
    }
    begin, end = turns[kind]
    begin()
    time.sleep(seconds)
    end()
    return f"for {seconds:.0f} s"


def _exchange(scene: Scene, refuse: bool) -> None:
    for replica in (scene.clickhouse, *scene.others):
        assert isinstance(replica, Replica)
        replica.exchange(refuse=refuse)


def _die(scene: Scene, where: dict[str, Any], seconds: float) -> str:
    scene.clickhouse.inject({**where, "action": "die"})
    assert scene.clickhouse.process
    try:
        scene.clickhouse.process.wait(WAIT_SECONDS)
        how = "died at a statement"
    except subprocess.TimeoutExpired:
        how = "died between statements"
    scene.clickhouse.kill()
    time.sleep(seconds)
    scene.clickhouse.start()
    return how
