"""One process of the application that writes: it commits a change in Postgres, and then sends it to ClickHouse.

Between the two lies Kafka, which delivers at least once and in no order between its topics. A Writer only queues its
messages; whoever delivers them may delay, reorder, repeat or drop them.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
from clickhouse_connect.driver.client import Client

from demo.schema import Table
from demo.switches import Switches

TOMBSTONE_STEP = 100


@dataclass(frozen=True)
class Message:
    """One row on its way to one table, by column; `_timestamp` is in whole seconds since 1970."""

    table: Table
    row: Mapping[str, Any]

    @property
    def key(self) -> tuple[int, str]:
        return self.row["team_id"], self.row["distinct_id"]


@dataclass(frozen=True)
class Change:
    """What happened to an id in Postgres: its persons before and after; None if it had or has none."""

    team_id: int
    distinct_id: str
    unlinked: UUID | None
    linked: UUID | None
    version: int
    """The version of the row that is sent to the new table."""
    silent: bool = False
    """Nothing is sent to either table: a deletion of PostHog 1.31 to 1.33, before there were tombstones."""


@dataclass(frozen=True)
class _Link:
    """A row of posthog_persondistinctid, with the uuid of its person."""

    id: int
    person_id: int
    version: int
    person: UUID


def _status(postgres: psycopg.Connection, transaction: str) -> str:
    [[status]] = postgres.execute("SELECT pg_xact_status(%s::xid8)", [transaction]).fetchall()
    return status


def deliver(clickhouse: Client, messages: Iterable[Message]) -> None:
    """Insert a batch as ClickHouse's Kafka consumers do: in the given order, one insert per table.

    It does not use Client.insert, which silently inserts again if the connection is cut.
    """
    batch = list(messages)
    for table in Table:
        if rows := [json.dumps(message.row, default=str) for message in batch if message.table is table]:
            clickhouse.command("\n".join([f"INSERT INTO {table} FORMAT JSONEachRow", *rows]))


class Writer:
    """Makes the changes that PostHog makes. Raises LookupError and changes nothing if an id or person does not exist.

    `postgres` must be in autocommit mode. `clock` gives seconds since 1970, and may be wrong. A writer is one Kafka
    partition: its offsets rise from the greatest offset that each table has at the start, and the offsets of two
    writers cannot be compared.

    Locks are always taken in the same order, persons before ids, so that writers do not deadlock.
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
        self._undecided: tuple[str, list[Change]] | None = None

    def reconnect(self, postgres: psycopg.Connection) -> None:
        """Go on with a new connection. What was being committed when the last one broke is sent if it was committed."""
        self.postgres = self.switches.postgres = postgres
        if self._undecided:
            transaction, changes = self._undecided
            while (status := _status(postgres, transaction)) == "in progress":
                time.sleep(0.01)
            if status == "committed":
                self._send(changes)
            self._undecided = None

    def create(self, team_id: int, distinct_id: str, version: int | None = 0) -> UUID:
        """Create an id, or one that was deleted, with a new person. Its version in Postgres is 0, or null if given so.

        ClickHouse gets 0 in both cases. PostHog's column is nullable, and its default is null.
        """
        person = uuid4()
        with self._transaction() as changes:
            self.postgres.execute(
                """
                WITH person AS
                    (INSERT INTO posthog_person (team_id, uuid) VALUES (%(team)s, %(person)s) RETURNING id)
                INSERT INTO posthog_persondistinctid (team_id, distinct_id, person_id, version)
                SELECT %(team)s, %(id)s, id, %(version)s FROM person
                """,
                {"team": team_id, "id": distinct_id, "person": person, "version": version},
            )
            changes.append(Change(team_id, distinct_id, None, person, 0))
        return person

    def identify(self, team_id: int, distinct_id: str, person: UUID) -> None:
        """Link an id to another person, who must exist. If it already has that person, nothing happens."""
        with self._transaction() as changes:
            target = self._lock_persons(team_id, person)[person]
            link = self._lock_link(team_id, distinct_id)
            if link.person_id != target:
                version = self._set_person(link, target)
                changes.append(Change(team_id, distinct_id, link.person, person, version))

    def relink(self, team_id: int, distinct_id: str) -> None:
        """Unlink an id and link it to the same person again: only its version changes."""
        with self._transaction() as changes:
            link = self._lock_link(team_id, distinct_id)
            version = self._set_person(link, link.person_id)
            changes.append(Change(team_id, distinct_id, link.person, link.person, version))

    def merge(self, team_id: int, loser: UUID, winner: UUID) -> None:
        """Give all ids of `loser` to `winner`, and delete `loser`."""
        with self._transaction() as changes:
            locked = self._lock_persons(team_id, loser, winner)
            moved = self.postgres.execute(
                """
                UPDATE posthog_persondistinctid SET person_id = %s, version = coalesce(version, 0) + 1
                WHERE team_id = %s AND person_id = %s
                RETURNING distinct_id, version
                """,
                [locked[winner], team_id, locked[loser]],
            )
            changes += [Change(team_id, distinct_id, loser, winner, version) for distinct_id, version in moved]
            self.postgres.execute("DELETE FROM posthog_person WHERE id = %s", [locked[loser]])

    def delete(self, team_id: int, distinct_id: str, *, silently: bool = False) -> None:
        """Delete an id; its person stays. `silently`: without telling ClickHouse, as PostHog 1.31 to 1.33 delete."""
        with self._transaction() as changes:
            link = self._lock_link(team_id, distinct_id)
            self.postgres.execute("DELETE FROM posthog_persondistinctid WHERE id = %s", [link.id])
            changes.append(Change(team_id, distinct_id, link.person, None, link.version + TOMBSTONE_STEP, silently))

    def delete_person(self, team_id: int, person: UUID, *, silently: bool = False) -> None:
        """Delete a person with all ids, `silently` as in `delete`."""
        with self._transaction() as changes:
            locked = self._lock_persons(team_id, person)
            deleted = self.postgres.execute(
                """
                DELETE FROM posthog_persondistinctid WHERE team_id = %s AND person_id = %s
                RETURNING distinct_id, coalesce(version, 0)
                """,
                [team_id, locked[person]],
            )
            changes += [
                Change(team_id, distinct_id, person, None, version + TOMBSTONE_STEP, silently)
                for distinct_id, version in deleted
            ]
            self.postgres.execute("DELETE FROM posthog_person WHERE id = %s", [locked[person]])

    def flush(self) -> list[Message]:
        """Deliver the outbox and return what it held. After an error it still holds everything: at least once."""
        delivered = list(self.outbox)
        deliver(self.clickhouse, delivered)
        self.outbox.clear()
        return delivered

    def _lock_persons(self, team_id: int, *persons: UUID) -> dict[UUID, int]:
        """Lock persons until the transaction ends, and return their primary keys."""
        query = """
            SELECT uuid, id FROM posthog_person WHERE team_id = %s AND uuid = ANY(%s) ORDER BY id FOR UPDATE
        """
        rows = self.postgres.execute(query, [team_id, list(persons)])
        keys: dict[UUID, int] = dict(rows.fetchall())
        if len(keys) < len(persons):
            raise LookupError(f"team {team_id} has not all of the persons {', '.join(map(str, persons))}")
        return keys

    def _lock_link(self, team_id: int, distinct_id: str) -> _Link:
        """Lock an id until the transaction ends, and return what it is linked to."""
        query = """
            SELECT id, person_id, coalesce(version, 0) FROM posthog_persondistinctid
            WHERE team_id = %s AND distinct_id = %s
            FOR UPDATE
        """
        row = self.postgres.execute(query, [team_id, distinct_id]).fetchone()
        if row is None:
            raise LookupError(f"team {team_id} has no distinct_id {distinct_id!r}")
        # Not a join, because after waiting for the lock it would still look up the earlier person.
        [person] = self.postgres.execute("SELECT uuid FROM posthog_person WHERE id = %s", [row[1]]).fetchall()
        return _Link(*row, *person)

    def _set_person(self, link: _Link, person_id: int) -> int:
        """Link an id to a person, and return its new version."""
        query = """
            UPDATE posthog_persondistinctid SET person_id = %s, version = coalesce(version, 0) + 1
            WHERE id = %s
            RETURNING version
        """
        [[version]] = self.postgres.execute(query, [person_id, link.id]).fetchall()
        return version

    @contextmanager
    def _transaction(self) -> Iterator[list[Change]]:
        """One transaction, whose changes are sent only once it is committed."""
        changes: list[Change] = []
        with self.postgres.transaction():
            yield changes
            self._before_commit(changes)
            transaction = self.postgres.execute("SELECT txid_current()::text").fetchone()
            assert transaction
            self._undecided = *transaction, changes
        self._send(changes)
        self._undecided = None

    def _before_commit(self, changes: list[Change]) -> None:
        """A hook for subclasses that record something in the same transaction."""

    def _send(self, changes: list[Change]) -> None:
        """Queue the rows of the changes for each table that is written: all of them, or none if this fails."""
        tables = self.switches.writes()
        for change in changes:
            if change.silent:
                continue
            key = {"team_id": change.team_id, "distinct_id": change.distinct_id}
            if Table.OLD in tables:
                if change.unlinked:
                    self._queue(Table.OLD, {**key, "person_id": change.unlinked, "_sign": -1})
                if change.linked:
                    self._queue(Table.OLD, {**key, "person_id": change.linked, "_sign": 1})
            if Table.NEW in tables:
                state = {"person_id": change.linked or change.unlinked, "is_deleted": int(change.linked is None)}
                self._queue(Table.NEW, {**key, **state, "version": change.version, "_partition": self.partition})

    def _queue(self, table: Table, row: dict[str, object]) -> None:
        place = {"_timestamp": int(self.clock()), "_offset": next(self._offsets[table])}
        self.outbox.append(Message(table, {**row, **place}))

    def _last_offset(self, table: Table) -> int:
        return self.clickhouse.query(f"SELECT max(_offset) FROM {table}").result_rows[0][0]
