"""One process of the application that writes: a change is committed in Postgres, then sent to ClickHouse.

Between the two lies Kafka, at least once and in no order between its topics. A Writer only queues its
messages; who delivers them may delay, reorder, repeat or drop them.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID, uuid4

import psycopg
from clickhouse_connect.driver.client import Client

from demo.schema import Table
from demo.switches import Switches

_COLUMNS = {
    Table.OLD: {
        "distinct_id": "String",
        "person_id": "UUID",
        "team_id": "Int64",
        "_sign": "Int8",
        "_timestamp": "DateTime",
        "_offset": "UInt64",
    },
    Table.NEW: {
        "team_id": "Int64",
        "distinct_id": "String",
        "person_id": "UUID",
        "is_deleted": "Int8",
        "version": "Int64",
        "_timestamp": "DateTime",
        "_offset": "UInt64",
        "_partition": "UInt64",
    },
}


@dataclass(frozen=True)
class Message:
    """One row on its way to one table, by column; `_timestamp` is in whole seconds since 1970."""

    table: Table
    row: Mapping[str, object]


@dataclass(frozen=True)
class _Link:
    """A row of posthog_persondistinctid, with the uuid of its person."""

    id: int
    person_id: int
    version: int
    person: UUID


def deliver(clickhouse: Client, messages: Iterable[Message]) -> None:
    """Insert a batch as ClickHouse's Kafka consumers do: in the given order, one insert a table."""
    batch = list(messages)
    for table, columns in _COLUMNS.items():
        rows = [[message.row[name] for name in columns] for message in batch if message.table is table]
        if rows:
            # Naming the types spares clickhouse-connect a DESCRIBE, most of the cost of a small insert.
            clickhouse.insert(table, rows, column_names=list(columns), column_type_names=list(columns.values()))


class Writer:
    """The changes PostHog makes. A LookupError says the id or person is not there; nothing is changed then.

    `postgres` must be in autocommit mode. `clock` gives seconds since 1970; a writer whose clock is wrong has
    a wrong clock. A writer is one Kafka partition: its offsets rise from the greatest each table holds at the
    start, and those of two writers do not compare.

    Locks are taken in one order, persons before ids, so that writers do not deadlock.
    """

    def __init__(
        self,
        postgres: psycopg.Connection,
        clickhouse: Client,
        switches: Switches,
        *,
        clock: Callable[[], float] = time.time,
        partition: int = 0,
    ) -> None:
        self.outbox: list[Message] = []
        """Committed in Postgres, not yet delivered; free to rearrange."""
        self.postgres = postgres
        self.clickhouse = clickhouse
        self.switches = switches
        self.clock = clock
        self.partition = partition
        self._offsets = {table: itertools.count(self._last_offset(table) + 1) for table in Table}

    def create(self, team_id: int, distinct_id: str) -> UUID:
        """A new id, or one deleted before, of a new person; the id's version is 0."""
        person = uuid4()
        self.postgres.execute(
            """
            WITH person AS
                (INSERT INTO posthog_person (team_id, uuid) VALUES (%(team)s, %(person)s) RETURNING id)
            INSERT INTO posthog_persondistinctid (team_id, distinct_id, person_id, version)
            SELECT %(team)s, %(id)s, id, 0 FROM person
            """,
            {"team": team_id, "id": distinct_id, "person": person},
        )
        self._send(team_id, distinct_id, None, person, 0)
        return person

    def identify(self, team_id: int, distinct_id: str, person: UUID) -> None:
        """Link an id to another person, who must exist. To the one it has already: nothing happens."""
        with self.postgres.transaction():
            target = self._lock_persons(team_id, person)[person]
            link = self._lock_link(team_id, distinct_id)
            if link.person_id == target:
                return
            version = self._set_person(link, target)
        self._send(team_id, distinct_id, link.person, person, version)

    def relink(self, team_id: int, distinct_id: str) -> None:
        """Unlink an id and link it to the same person again: only its version changes."""
        with self.postgres.transaction():
            link = self._lock_link(team_id, distinct_id)
            version = self._set_person(link, link.person_id)
        self._send(team_id, distinct_id, link.person, link.person, version)

    def merge(self, team_id: int, loser: UUID, winner: UUID) -> None:
        """Give all ids of `loser` to `winner`, and delete `loser`."""
        with self.postgres.transaction():
            locked = self._lock_persons(team_id, loser, winner)
            moved = self.postgres.execute(
                """
                UPDATE posthog_persondistinctid SET person_id = %s, version = coalesce(version, 0) + 1
                WHERE team_id = %s AND person_id = %s
                RETURNING distinct_id, version
                """,
                [locked[winner], team_id, locked[loser]],
            ).fetchall()
            self.postgres.execute("DELETE FROM posthog_person WHERE id = %s", [locked[loser]])
        for distinct_id, version in moved:
            self._send(team_id, distinct_id, loser, winner, version)

    def delete(self, team_id: int, distinct_id: str) -> None:
        """Delete an id; its person stays."""
        with self.postgres.transaction():
            link = self._lock_link(team_id, distinct_id)
            self.postgres.execute("DELETE FROM posthog_persondistinctid WHERE id = %s", [link.id])
        self._send(team_id, distinct_id, link.person, None, link.version + 100)

    def flush(self) -> list[Message]:
        """Deliver the outbox and return what it held. After an error it still holds all: at least once."""
        delivered = list(self.outbox)
        deliver(self.clickhouse, delivered)
        self.outbox.clear()
        return delivered

    def _lock_persons(self, team_id: int, *persons: UUID) -> dict[UUID, int]:
        """Lock persons until the transaction ends, and give their primary keys."""
        query = """
            SELECT uuid, id FROM posthog_person WHERE team_id = %s AND uuid = ANY(%s) ORDER BY id FOR UPDATE
        """
        rows = self.postgres.execute(query, [team_id, list(persons)])
        keys: dict[UUID, int] = dict(rows.fetchall())
        if len(keys) < len(persons):
            raise LookupError(f"team {team_id} has not all of the persons {', '.join(map(str, persons))}")
        return keys

    def _lock_link(self, team_id: int, distinct_id: str) -> _Link:
        """Lock an id until the transaction ends, and give what it is linked to."""
        query = """
            SELECT id, person_id, coalesce(version, 0) FROM posthog_persondistinctid
            WHERE team_id = %s AND distinct_id = %s
            FOR UPDATE
        """
        row = self.postgres.execute(query, [team_id, distinct_id]).fetchone()
        if row is None:
            raise LookupError(f"team {team_id} has no distinct_id {distinct_id!r}")
        # Not a join: after waiting for the lock it would still look for the person of before.
        [person] = self.postgres.execute("SELECT uuid FROM posthog_person WHERE id = %s", [row[1]]).fetchall()
        return _Link(*row, *person)

    def _set_person(self, link: _Link, person_id: int) -> int:
        """Link an id to a person, and give its new version."""
        query = """
            UPDATE posthog_persondistinctid SET person_id = %s, version = coalesce(version, 0) + 1
            WHERE id = %s
            RETURNING version
        """
        [[version]] = self.postgres.execute(query, [person_id, link.id]).fetchall()
        return version

    def _send(self, team_id: int, distinct_id: str, unlinked: UUID | None, linked: UUID | None, version: int) -> None:
        """Queue what one change means to each table that is written."""
        key = {"team_id": team_id, "distinct_id": distinct_id}
        tables = self.switches.writes()
        if Table.OLD in tables:
            if unlinked:
                self._queue(Table.OLD, {**key, "person_id": unlinked, "_sign": -1})
            if linked:
                self._queue(Table.OLD, {**key, "person_id": linked, "_sign": 1})
        if Table.NEW in tables:
            state = {"person_id": linked or unlinked, "is_deleted": int(linked is None), "version": version}
            self._queue(Table.NEW, {**key, **state, "_partition": self.partition})

    def _queue(self, table: Table, row: dict[str, object]) -> None:
        place = {"_timestamp": int(self.clock()), "_offset": next(self._offsets[table])}
        self.outbox.append(Message(table, {**row, **place}))

    def _last_offset(self, table: Table) -> int:
        return self.clickhouse.query(f"SELECT max(_offset) FROM {table}").result_rows[0][0]
