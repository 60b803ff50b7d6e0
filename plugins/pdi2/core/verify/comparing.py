"""Compares what a reader of the new table sees for an id with Postgres, which is the truth."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from uuid import UUID

from more_itertools import constrained_batches
from psycopg import Connection

from pdi2.core.engines import postgres
from pdi2.core.engines.clickhouse import Warehouse

KEYS_AT_ONCE = 20_000
ID_BYTES_AT_ONCE = 1_000_000
"""Ids are part of the statement's text, and a distinct_id may have any length."""

Key = tuple[int, bytes]
"""A team and one of its distinct_ids."""


class Kind(StrEnum):
    """How the new table differs from Postgres."""

    MISSING = "missing"
    STALE = "stale"
    WRONG_PERSON = "wrong_person"
    RESURRECTED = "resurrected"
    AHEAD = "ahead"


@dataclass(frozen=True, slots=True)
class Truth:
    """A row in Postgres; a version of null counts as 0."""

    person_id: UUID
    version: int


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest row in the new table; `rivals` are rows of the same version that contradict it."""

    person_id: UUID
    is_deleted: bool
    version: int
    rivals: tuple["Seen", ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """An id for which the new table does not have what Postgres says."""

    team_id: int
    distinct_id: bytes
    seen: Seen | None
    truth: Truth | None

    @property
    def key(self) -> Key:
        return self.team_id, self.distinct_id

    @property
    def kind(self) -> Kind:
        if self.truth is None:
            return Kind.RESURRECTED
        if self.seen is not None and self.seen.version > self.truth.version:
            return Kind.AHEAD
        if self.seen is None or self.seen.is_deleted:
            return Kind.MISSING
        return Kind.STALE if 0 <= self.seen.version < self.truth.version else Kind.WRONG_PERSON

    def in_flight_since(self, before: "Difference") -> bool:
        """Whether Postgres has changed since `before`, and the new table has caught up with what Postgres said then.

        A row above Postgres's version is never just in flight, because the application writes to Postgres first. Nor
        does a row that has not moved since `before` show that the table has caught up.
        """
        if self.truth == before.truth or self.kind is Kind.AHEAD:
            return False
        if before.truth and self.seen and self.seen != before.seen and self.seen.version > before.truth.version:
            return True
        return _agree(self.seen, before.truth)


def differences(connection: Connection[Any], warehouse: Warehouse, keys: Iterable[Key]) -> list[Difference]:
    """The ids for which the new table does not have what Postgres says at this moment, in key order."""
    found = []
    for portion in portions(keys):
        seen = newest_rows(warehouse, portion)  # first, so that it cannot be newer than the truth
        truth = truths(connection, portion)
        found += [
            Difference(*key, seen.get(key), truth.get(key))
            for key in portion
            if not _agree(seen.get(key), truth.get(key))
        ]
    return found


def old_answers(warehouse: Warehouse, keys: Iterable[Key]) -> dict[Key, UUID]:
    """What the old table's reader says about the ids, as far as it knows them."""
    return {
        (team_id, distinct_id): person_id
        for portion in portions(keys)
        for team_id, distinct_id, person_id in warehouse.rows("old_of_ids", keyed(portion))
    }


def newest_rows(warehouse: Warehouse, keys: Iterable[Key]) -> dict[Key, Seen]:
    """The newest row of each id in the new table, as far as it has the ids."""
    seen: dict[Key, Seen] = {}
    for portion in portions(keys):
        for team_id, distinct_id, person_id, is_deleted, version in warehouse.rows("new_of_ids", keyed(portion)):
            row = Seen(person_id, bool(is_deleted), version)
            first = seen.get((team_id, distinct_id))
            seen[team_id, distinct_id] = replace(first, rivals=(*first.rivals, row)) if first else row
    return seen


def portions(keys: Iterable[Key]) -> Iterator[tuple[Key, ...]]:
    """The ids, in order, in portions that fit into one statement."""
    return constrained_batches(
        sorted(keys), ID_BYTES_AT_ONCE, KEYS_AT_ONCE, get_len=lambda key: len(key[1]), strict=False
    )


def keyed(keys: Iterable[Key]) -> dict[str, Any]:
    """The parameters of keys.sql."""
    return {"keys": ",".join(f"{team_id}:{distinct_id.hex()}" for team_id, distinct_id in keys)}


def _agree(seen: Seen | None, truth: Truth | None) -> bool:
    """Whether a reader sees what Postgres says, and will see what the application writes next.

    The application writes Postgres's version plus one, or 0 for an id that comes back, so no row may have a version
    above Postgres's. A copy of the right person may have a lower version, whether it is ours or PostHog's own
    (version 0). For an id that Postgres does not have, a tombstone is right: at -1 it is ours, above that it is the
    application's.
    """
    if seen is None or truth is None:
        return truth is None and (seen is None or all(row.is_deleted for row in (seen, *seen.rivals)))
    if seen.rivals or seen.is_deleted or seen.person_id != truth.person_id:
        return False
    return seen.version == truth.version or seen.version <= min(0, truth.version)


def truths(connection: Connection[Any], keys: Iterable[Key]) -> dict[Key, Truth]:
    """What Postgres says about the ids, as far as it has them."""
    readable = [(team_id, text) for team_id, raw in keys if (text := text_of(raw)) is not None]
    parameters = {"team_ids": [team_id for team_id, _ in readable], "distinct_ids": [text for _, text in readable]}
    return {
        (team_id, distinct_id.encode()): Truth(person_id, version)
        for team_id, distinct_id, person_id, version in postgres.execute(connection, "truth_of_ids", parameters)
    }


def text_of(distinct_id: bytes) -> str | None:
    """The id as text; None if Postgres cannot hold it, because it has a NUL or is not UTF-8."""
    try:
        text = distinct_id.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text
