"""A process of the application that reads, and compares every answer with Postgres.

An answer may be late, but never wrong. If it differs from Postgres, the reader waits until everything that was
committed before has arrived, and asks the same table again. If the id has not changed meanwhile and the answer still
differs, it is wrong.

By its own rule, the old table is wrong about some ids for ever. So the reader follows only those existing ids that it
finds right at first. It follows all new ids, because a LiveWriter avoids what the old table gets wrong. And if
ClickHouse was not told of a deletion, a person from before it is not a wrong answer: see demo/past_lives.py.
"""

import collections
import dataclasses
import datetime
import math
import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import Error as ClickHouseFailure

from demo import past_lives
from demo.reader import Link, links_of, persons_in, some_ids
from demo.schema import Table
from demo.switches import Switches

IDS_AT_ONCE = 50
SAMPLED_A_TEAM = 30
NEWCOMERS_AT_ONCE = 50
MOST_FOLLOWED_A_TEAM = 200
EXAMPLES = 20
END_SECONDS = 60.0
AGAIN_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Doubt:
    """An answer that differed from Postgres."""

    table: Table
    team_id: int
    distinct_id: str
    truth: Link | None
    since: float
    """By time.monotonic(); the truth was committed before."""


class LiveReader:
    def __init__(
        self,
        connect_postgres: Callable[[], psycopg.Connection],
        connect_clickhouse: Callable[[], Client],
        *,
        cache_seconds: float,
        seed: int,
    ) -> None:
        self.connect_postgres, self.connect_clickhouse = connect_postgres, connect_clickhouse
        self.postgres = connect_postgres()
        self.clickhouse = connect_clickhouse()
        past_lives.prepare(self.postgres)
        self.switches = Switches(self.postgres, cache_seconds)
        self.chance = random.Random(f"{seed} reader")
        self.followed: dict[int, list[str]] = collections.defaultdict(list)
        self.doubts: dict[tuple[int, str], Doubt] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[dict[str, Any]] = []
        """Examples of wrong answers."""
        self.tables: list[tuple[str, Table]] = []
        """Which table was read, and since when."""
        [[self.newest]] = self.postgres.execute("SELECT coalesce(max(id), 0) FROM posthog_persondistinctid").fetchall()
        self._sample()

    def step(self, low_water: float) -> None:
        """Look at a few ids. Everything committed before `low_water` has arrived in both tables."""
        self._patiently(partial(self._step, low_water))

    def end(self) -> None:
        """Look at every id once more after everything has arrived. Gives up if a database stays away."""
        deadline = time.monotonic() + END_SECONDS
        while not self._patiently(self._look_at_all):
            if time.monotonic() > deadline:
                raise TimeoutError(f"a database was away for the last {END_SECONDS} s, so the last look is missing")

    def _patiently(self, work: Callable[[], None]) -> bool:
        """Whether the work was done; if not, reconnects. A real reader would show an error then, and no answer."""
        try:
            work()
        except (psycopg.OperationalError, ClickHouseFailure):
            self.counts["failed_reads"] += 1
            self._reconnect()
            return False
        return True

    def _reconnect(self) -> None:
        time.sleep(AGAIN_SECONDS)
        with suppress(psycopg.OperationalError, ClickHouseFailure):
            self.postgres.close()
            self.clickhouse.close()
            self.postgres = self.switches.postgres = self.connect_postgres()
            self.clickhouse = self.connect_clickhouse()

    def _step(self, low_water: float) -> None:
        table = self.switches.reads()
        if not self.tables or table is not self.tables[-1][1]:
            self.tables.append((datetime.datetime.now(datetime.UTC).isoformat(), table))
            if table is Table.NEW:
                self._sample()
        self._follow_newcomers()
        self._settle(low_water)
        if self.followed:
            team_id = self.chance.choice(list(self.followed))
            ids = self.followed[team_id]
            self._look(team_id, self.chance.sample(ids, min(IDS_AT_ONCE, len(ids))))

    def _look_at_all(self) -> None:
        for team_id, ids in self.followed.items():
            self._look(team_id, ids)
        self._settle(math.inf)

    def _sample(self) -> None:
        """Choose some ids of every team; if the old table is read, only ids that it gets right now."""
        table = self.switches.reads()
        for (team_id,) in self.postgres.execute("SELECT id FROM posthog_team").fetchall():
            ids = [*some_ids(self.postgres, team_id, self.chance, SAMPLED_A_TEAM)]
            if table is Table.OLD:
                truth = links_of(self.postgres, team_id, ids)
                seen = persons_in(self.clickhouse, table, team_id, ids)
                right = [id_ for id_ in ids if id_ in truth and seen.get(id_) == truth[id_].person]
                self.counts["old_table_wrong_at_first"] += len(ids) - len(right)
                ids = right
            self.followed[team_id] += ids

    def _follow_newcomers(self) -> None:
        query = """
            SELECT id, team_id, distinct_id FROM posthog_persondistinctid WHERE id > %s ORDER BY id DESC LIMIT %s
        """
        for key, team_id, distinct_id in self.postgres.execute(query, [self.newest, NEWCOMERS_AT_ONCE]).fetchall():
            self.newest = max(self.newest, key)
            ids = self.followed[team_id]
            ids.append(distinct_id)
            if len(ids) > MOST_FOLLOWED_A_TEAM:
                ids.pop(self.chance.randrange(len(ids)))

    def _look(self, team_id: int, ids: list[str]) -> None:
        table = self.switches.reads()
        truth = links_of(self.postgres, team_id, ids)
        now = time.monotonic()
        seen = persons_in(self.clickhouse, table, team_id, ids)
        self.counts.update({"reads": len(ids), f"reads of {table}": len(ids)})
        for distinct_id in ids:
            link = truth.get(distinct_id)
            if seen.get(distinct_id) != (link and link.person):
                self.doubts.setdefault((team_id, distinct_id), Doubt(table, team_id, distinct_id, link, now))

    def _settle(self, low_water: float) -> None:
        """Judge the doubts whose truth has arrived by now."""
        for key, doubt in [*self.doubts.items()]:
            if doubt.since < low_water:
                self.counts[self._judge(doubt)] += 1
                del self.doubts[key]

    def _judge(self, doubt: Doubt) -> str:
        team_id, distinct_id = doubt.team_id, doubt.distinct_id
        before = links_of(self.postgres, team_id, [distinct_id]).get(distinct_id)
        answer = persons_in(self.clickhouse, doubt.table, team_id, [distinct_id]).get(distinct_id)
        after = links_of(self.postgres, team_id, [distinct_id]).get(distinct_id)
        if not before == after == doubt.truth:
            return "moved_meanwhile"
        if answer == (after and after.person):
            return "late"
        if answer in past_lives.persons_of(self.postgres, team_id, distinct_id):
            return "past_life"
        self.wrong.append(
            {
                "table": doubt.table,
                "team_id": team_id,
                "distinct_id": distinct_id,
                "answer": answer and str(answer),
                "postgres": after and {"person": str(after.person), "version": after.version},
                "at": datetime.datetime.now(datetime.UTC).isoformat(),
            }
        )
        del self.wrong[EXAMPLES:]
        return "wrong"
