"""A process of the application that writes: changes at a steady rate in Postgres, and batches to ClickHouse.

It makes every change that PostHog makes, except those that the old table gets wrong by its own rule even if it receives
everything. So an id never returns to a person, moves at most once per second, and is deleted only if each of its links
arrived once. And if an id's deletion was sent to ClickHouse, the id is created again only if the new table never had
it, because it would hide behind its tombstone there (PostHog #12610). A writer with the habit `silent` also deletes as
PostHog 1.31 to 1.33 do: see demo/past_lives.py.
"""

import collections
import dataclasses
import itertools
import random
import time
from collections.abc import Callable
from uuid import UUID

import psycopg
from clickhouse_connect.driver.client import Client

from demo import past_lives
from demo.reader import ids_with_one_row, links_of, some_ids
from demo.schema import Table
from demo.switches import Switches
from demo.topic import AGAIN_SECONDS, Key, Topic
from demo.writer import Change, Writer

SHARES = {"create": 40, "identify": 28, "merge": 16, "delete": 8, "delete_person": 4, "create_again": 4}
"""How often each change is tried. If it is not possible at the moment, an id is created instead."""
SILENT_SHARES = {"delete_silently": 16, "create_again": 12}
"""How often a writer with the habit `silent` also tries these."""

TEAMS_SECONDS = 5.0
ADOPTED_A_TEAM = 100
TRIES = 5
ODD = ["", "o'brien", "back\\slash\\", "naïve 人 🦔", "%s {a:Int8}", "line\nbreak\t"]


@dataclasses.dataclass(frozen=True)
class Habits:
    """How one writer process behaves; times in seconds."""

    cache_seconds: float = 2.0
    """How old its knowledge of the switches may be."""
    deaf: bool = False
    """It never hears of the dual write, and writes only the old table for ever."""
    clock_ahead: float = 0.0
    silent: bool = False
    """Some of its deletions send nothing to ClickHouse, as in PostHog 1.31 to 1.33. Such ids come back."""

    @classmethod
    def parse(cls, text: str) -> "Habits":
        """`stale:SECONDS`, `deaf`, `silent`, or `clock:SECONDS` (behind if negative)."""
        match text.split(":"):
            case ["silent"]:
                return cls(silent=True)
            case ["deaf"]:
                return cls(deaf=True)
            case ["stale", seconds]:
                return cls(cache_seconds=float(seconds))
            case ["clock", seconds]:
                return cls(clock_ahead=float(seconds))
        raise ValueError(f"{text} is none of stale:SECONDS, deaf, silent, clock:SECONDS")


@dataclasses.dataclass
class Id:
    """What a process remembers about an id, which no other process changes."""

    team_id: int
    distinct_id: str
    person: UUID
    past: set[UUID]
    """Every person that the id ever had."""
    changed_at: float
    """By time.monotonic()."""
    in_new_table: bool = True


class LiveWriter(Writer):
    """A Writer that makes up its changes."""

    def __init__(
        self,
        connect_postgres: Callable[[], psycopg.Connection],
        connect_clickhouse: Callable[[], Client],
        *,
        number: int,
        processes: int,
        habits: Habits,
        seed: int,
        flush_seconds: float,
    ) -> None:
        """This is process `number` of `processes`, each of which has its own ids."""
        self.connect_postgres = connect_postgres
        self.chance = random.Random(f"{seed} {number}")
        self.shares = SHARES | SILENT_SHARES if habits.silent else SHARES
        postgres = connect_postgres()
        past_lives.prepare(postgres)
        switches = Switches(postgres, habits.cache_seconds)
        if habits.deaf:
            switches.writes = lambda: frozenset({Table.OLD})  # type: ignore[method-assign]
        clock = lambda: time.time() + habits.clock_ahead  # noqa: E731
        self.ids: dict[int, list[Id]] = {}
        self.known: dict[Key, Id] = {}
        self.persons: set[UUID] = set()
        """Persons that it created, so that it knows all of their ids."""
        self.free_again: list[Key] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.names = (f"live {time.time():.0f} {number} {count}" for count in itertools.count())
        self.topics = {table: Topic(table, connect_clickhouse, f"{seed} {number}", flush_seconds) for table in Table}
        with connect_clickhouse() as clickhouse:
            super().__init__(postgres, clickhouse, switches, clock=clock, partition=number)
            self._refresh_teams()
            for team_id in self.ids:
                self._adopt(team_id, number, processes)
        for topic in self.topics.values():
            topic.start()

    def step(self) -> None:
        """Make one change. If Postgres goes away meanwhile, wait until it is back."""
        self.began = time.monotonic()
        try:
            if self.began > self.teams_expire:
                self._refresh_teams()
            team_id = self.chance.choice(list(self.ids))
            [kind] = self.chance.choices(list(self.shares), list(self.shares.values()))
            if not getattr(self, f"_try_{kind}")(team_id):
                kind = "create"
                self.create(team_id, self._new_name())
            self.counts.update([kind, "writes"])
        except psycopg.OperationalError:
            self.counts["postgres_lost"] += 1
            self._reconnect_patiently()

    def low_water(self) -> float:
        """The moment before which everything that this process committed has arrived. Call it between two steps."""
        return min(time.monotonic(), *(topic.oldest() for topic in self.topics.values()))

    def end(self, within_seconds: float) -> int:
        """Deliver what is queued; returns how many messages could not be delivered."""
        for topic in self.topics.values():
            topic.ending.set()
        deadline = time.monotonic() + within_seconds
        for topic in self.topics.values():
            topic.join(max(0, deadline - time.monotonic()))
            self.counts += topic.counts
        return sum(len(topic.queue) for topic in self.topics.values())

    def _try_create(self, team_id: int) -> bool:
        return False

    def _try_create_again(self, team_id: int) -> bool:
        if not self.free_again:
            return False
        self.create(*self.free_again.pop(), version=self.chance.choice([0, None]))
        return True

    def _try_identify(self, team_id: int) -> bool:
        moved, target = self._pick(team_id, self._movable), self._pick(team_id, self._owned)
        if not moved or not target or target.person in moved.past:
            return False
        self.identify(team_id, moved.distinct_id, target.person)
        return True

    def _try_merge(self, team_id: int) -> bool:
        loser, winner = self._pick(team_id, self._owned), self._pick(team_id, self._owned)
        if not loser or not winner or loser.person == winner.person:
            return False
        moved = self._ids_of(loser.person, team_id)
        if not all(self._movable(one) and winner.person not in one.past for one in moved):
            return False
        self.merge(team_id, loser.person, winner.person)
        return True

    def _try_delete(self, team_id: int) -> bool:
        if gone := self._pick(team_id, self._deletable):
            self.delete(team_id, gone.distinct_id)
        return bool(gone)

    def _try_delete_person(self, team_id: int) -> bool:
        gone = self._pick(team_id, self._owned)
        if not gone or not all(map(self._deletable, self._ids_of(gone.person, team_id))):
            return False
        self.delete_person(team_id, gone.person)
        return True

    def _try_delete_silently(self, team_id: int) -> bool:
        if gone := self._pick(team_id, self._owned):
            self.delete_person(team_id, gone.person, silently=True)
        return bool(gone)

    def _pick(self, team_id: int, fits: Callable[[Id], bool]) -> Id | None:
        ids = self.ids[team_id]
        candidates = (self.chance.choice(ids) for _ in range(TRIES)) if ids else iter(())
        return next(filter(fits, candidates), None)

    def _ids_of(self, person: UUID, team_id: int) -> list[Id]:
        return [one for one in self.ids[team_id] if one.person == person]

    def _owned(self, one: Id) -> bool:
        return one.person in self.persons

    def _movable(self, one: Id) -> bool:
        """Not in the same second as its last change, because the old table could not tell which change was later."""
        return time.monotonic() - one.changed_at > 1

    def _deletable(self, one: Id) -> bool:
        """Whether each of its links arrived once: a merge would take a repeated link for two, and keep one of them."""
        topic = self.topics[Table.OLD]
        return one.changed_at < topic.oldest() and (one.team_id, one.distinct_id) not in topic.repeated

    def _new_name(self) -> str:
        odd = f" {self.chance.choice(ODD)}" if self.chance.random() < 0.05 else ""
        return next(self.names) + odd

    def _before_commit(self, changes: list[Change]) -> None:
        past_lives.note(self.postgres, changes)

    def _send(self, changes: list[Change]) -> None:
        super()._send(changes)
        in_new_table = any(message.table is Table.NEW for message in self.outbox)
        for message in self.outbox:
            self.topics[message.table].queue.append((self.began, message))
        self.outbox.clear()
        for change in changes:
            self._remember(change, in_new_table)

    def _remember(self, change: Change, in_new_table: bool) -> None:
        key = change.team_id, change.distinct_id
        one = self.known.get(key)
        if one is None and change.linked:
            self.persons.add(change.linked)
            self._know(Id(*key, change.linked, {change.linked}, time.monotonic(), in_new_table))
        elif one and change.linked:
            one.person, one.changed_at = change.linked, time.monotonic()
            one.in_new_table |= in_new_table
            one.past.add(change.linked)
        elif one:
            self.ids[change.team_id].remove(self.known.pop(key))
            if change.silent or not (one.in_new_table or in_new_table):
                self.free_again.append(key)

    def _know(self, one: Id) -> None:
        self.known[one.team_id, one.distinct_id] = one
        self.ids[one.team_id].append(one)

    def _refresh_teams(self) -> None:
        for (team_id,) in self.postgres.execute("SELECT id FROM posthog_team"):
            self.ids.setdefault(team_id, [])
        self.teams_expire = time.monotonic() + TEAMS_SECONDS

    def _adopt(self, team_id: int, number: int, processes: int) -> None:
        """Take charge of some existing ids, if the old table knows all of their history."""
        found = some_ids(self.postgres, team_id, self.chance, ADOPTED_A_TEAM * processes)
        mine = [distinct_id for distinct_id, key in found.items() if key % processes == number]
        plain = ids_with_one_row(self.clickhouse, team_id, mine)
        for distinct_id, link in links_of(self.postgres, team_id, plain).items():
            self._know(Id(team_id, distinct_id, link.person, {link.person}, 0))

    def _reconnect_patiently(self) -> None:
        while True:
            try:
                self.postgres.close()
                return self.reconnect(self.connect_postgres())
            except psycopg.OperationalError:
                time.sleep(AGAIN_SECONDS)
