"""What a reader of ClickHouse sees against Postgres, the truth: by digests first, row by row where they differ."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from more_itertools import chunked
from psycopg import Connection

from pdi2.core import postgres
from pdi2.core.clickhouse import Warehouse
from pdi2.core.ledger import Team

ROWS_A_BUCKET = 1_000
MOST_BUCKETS = 1 << 16
BUCKETS_AT_ONCE = 100
IDS_AT_ONCE = 500


class Kind(StrEnum):
    """How the new table differs from Postgres."""

    MISSING = "missing"
    STALE = "stale"
    WRONG_PERSON = "wrong_person"
    RESURRECTED = "resurrected"
    AHEAD = "ahead"


@dataclass(frozen=True)
class Truth:
    """A row of Postgres; a version of null counts as 0."""

    person_id: UUID
    version: int


@dataclass(frozen=True)
class Seen:
    """The newest row of the new table; `rivals` are rows of the same version that contradict it."""

    person_id: UUID
    is_deleted: bool
    version: int
    rivals: int = 0


@dataclass(frozen=True)
class Difference:
    """An id for which a reader of the new table and Postgres disagree."""

    distinct_id: bytes
    seen: Seen | None
    truth: Truth | None

    @property
    def kind(self) -> Kind:
        if self.truth is None:
            return Kind.RESURRECTED
        if self.seen is not None and self.seen.version > self.truth.version:
            return Kind.AHEAD
        if self.seen is None or self.seen.is_deleted:
            return Kind.MISSING
        return Kind.STALE if 0 <= self.seen.version < self.truth.version else Kind.WRONG_PERSON


def suspects(connection: Connection[Any], warehouse: Warehouse, team: Team, table: str) -> Iterator[set[bytes]]:
    """Ids of the team that a reader of the table ("old" or "new") sees otherwise than Postgres, in portions."""
    mask = _mask(team)
    parameters = {"team_id": team.team_id, "mask": mask}
    truth = {bucket: content for bucket, *content in postgres.execute(connection, "truth_digest", parameters)}
    seen = {bucket: [count, total.decode()] for bucket, count, total in warehouse.rows(f"digest_{table}", parameters)}
    differing = sorted(bucket for bucket in truth.keys() | seen.keys() if truth.get(bucket) != seen.get(bucket))
    for buckets in chunked(differing, BUCKETS_AT_ONCE):
        chosen = {**parameters, "buckets": buckets}
        in_postgres = {
            (distinct_id.encode(), person_id)
            for distinct_id, person_id, _ in postgres.execute(connection, "truth_of_buckets", chosen)
        }
        in_clickhouse = {(row[0], row[1]) for row in warehouse.rows(f"{table}_of_buckets", chosen)}
        yield {distinct_id for distinct_id, _ in in_postgres ^ in_clickhouse}


def contradictions(warehouse: Warehouse, team_id: int) -> set[bytes]:
    """Ids of which the new table holds rows of one version that say different things: a digest may miss them."""
    return {distinct_id for (distinct_id,) in warehouse.rows("contradictions", {"team_id": team_id})}


def differences(
    connection: Connection[Any], warehouse: Warehouse, team_id: int, distinct_ids: set[bytes]
) -> list[Difference]:
    """Those of the ids for which the new table and Postgres disagree at this moment."""
    found = []
    for ids in chunked(sorted(distinct_ids), IDS_AT_ONCE):
        seen = _seen(warehouse, team_id, ids)
        truth = _truth(connection, team_id, ids)
        found += [
            Difference(distinct_id, seen.get(distinct_id), truth.get(distinct_id))
            for distinct_id in ids
            if not _agree(seen.get(distinct_id), truth.get(distinct_id))
        ]
    return found


def _agree(seen: Seen | None, truth: Truth | None) -> bool:
    if seen is not None and seen.rivals:
        return False
    if seen is None or seen.is_deleted:
        return truth is None
    return truth is not None and seen.person_id == truth.person_id


def _seen(warehouse: Warehouse, team_id: int, ids: list[bytes]) -> dict[bytes, Seen]:
    parameters = {"team_id": team_id, "distinct_ids": [distinct_id.hex() for distinct_id in ids]}
    seen: dict[bytes, Seen] = {}
    for distinct_id, person_id, is_deleted, version in warehouse.rows("new_of_ids", parameters):
        rivals = seen[distinct_id].rivals + 1 if distinct_id in seen else 0
        seen[distinct_id] = Seen(person_id, bool(is_deleted), version, rivals)
    return seen


def _truth(connection: Connection[Any], team_id: int, ids: list[bytes]) -> dict[bytes, Truth]:
    parameters = {
        "team_id": team_id,
        "distinct_ids": [text for raw in ids if (text := _text(raw)) is not None],
    }
    return {
        distinct_id.encode(): Truth(person_id, version)
        for distinct_id, person_id, version in postgres.execute(connection, "truth_of_ids", parameters)
    }


def _text(distinct_id: bytes) -> str | None:
    """What Postgres could hold: no NUL and nothing but UTF-8."""
    try:
        text = distinct_id.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _mask(team: Team) -> int:
    """Buckets of about ROWS_A_BUCKET rows: the hash's lowest bits."""
    wanted = max(1, team.rows_source // ROWS_A_BUCKET)
    return min(1 << wanted.bit_length(), MOST_BUCKETS) - 1
