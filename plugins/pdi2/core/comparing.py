"""What a reader of ClickHouse sees against Postgres, the truth: by digests first, row by row where they differ."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from operator import itemgetter
from typing import Any
from uuid import UUID

from clickhouse_connect.driver.exceptions import DatabaseError
from more_itertools import constrained_batches, map_reduce
from psycopg import Connection

from pdi2.core import postgres
from pdi2.core.clickhouse import Warehouse, spilling
from pdi2.core.failures import Reaction, is_time_limit, reaction
from pdi2.core.slices import FEWEST_ROWS, Slice, Teams, aggregated_at_once, cut, join

ROWS_A_BUCKET = 1_000
MOST_BUCKETS = 1 << 16
ROWS_AT_ONCE = 100_000
"""Listed from both databases to find what differs."""
IDS_AT_ONCE = 500
ID_BYTES_AT_ONCE = 100_000
"""Ids go within the address of a request, and a distinct_id may have any length."""

Buckets = dict[tuple[int, int], tuple[int, int]]
"""By team and bucket: how many ids, and the sum of their hashes."""
NONE = (0, 0)


class Kind(StrEnum):
    """How the new table differs from Postgres."""

    MISSING = "missing"
    STALE = "stale"
    WRONG_PERSON = "wrong_person"
    RESURRECTED = "resurrected"
    AHEAD = "ahead"


@dataclass(frozen=True, slots=True)
class Truth:
    """A row of Postgres; a version of null counts as 0."""

    person_id: UUID
    version: int


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest row of the new table; `rivals` are rows of the same version that contradict it."""

    person_id: UUID
    is_deleted: bool
    version: int
    rivals: tuple["Seen", ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """An id for which a reader of the new table and Postgres disagree."""

    team_id: int
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

    @property
    def person(self) -> UUID | None:
        """What a reader of the new table sees."""
        return None if self.seen is None or self.seen.is_deleted else self.seen.person_id

    def in_flight_since(self, before: "Difference") -> bool:
        """Whether Postgres moved on since that look, and the new table has caught up with what it said then."""
        if self.truth == before.truth or self.kind is Kind.AHEAD:
            return False
        if before.truth and self.seen and self.seen.version > before.truth.version:
            return True
        return _agree(self.seen, before.truth)


@dataclass(frozen=True)
class Digests:
    """Teams as a reader of the new table sees them, and as Postgres has them."""

    seen: Buckets
    truth: Buckets

    @property
    def differing(self) -> list[tuple[int, int]]:
        """The teams' buckets, in order."""
        return sorted(key for key in self.seen.keys() | self.truth.keys() if self.seen.get(key) != self.truth.get(key))

    def ids(self, key: tuple[int, int]) -> int:
        """At most so many are in a bucket."""
        return max(self.seen.get(key, NONE)[0], self.truth.get(key, NONE)[0])


def digests(connection: Connection[Any], warehouse: Warehouse, teams: Teams) -> Digests:
    mask = _mask(teams)
    truth = postgres.execute(connection, "truth_digest", {"team_ids": list(teams.ids), "mask": mask})
    seen: Buckets = {}
    for team_id, bucket, ids, total in _by_range(warehouse, "digest_new", teams, mask=mask):
        ids_before, total_before = seen.get((team_id, bucket), NONE)
        seen[team_id, bucket] = (ids_before + ids, total_before + int(total))
    return Digests(truth={(team_id, bucket): (ids, int(total)) for team_id, bucket, ids, total in truth}, seen=seen)


def by_team(buckets: Buckets) -> dict[int, str]:
    """A digest a team, for people to compare: `ids:sum of hashes`."""
    sums: dict[int, tuple[int, int]] = {}
    for (team_id, _), (ids, total) in buckets.items():
        ids_before, total_before = sums.get(team_id, NONE)
        sums[team_id] = (ids_before + ids, total_before + total)
    return {team_id: f"{ids}:{total}" for team_id, (ids, total) in sums.items()}


def suspects(
    connection: Connection[Any], warehouse: Warehouse, teams: Teams, found: Digests | None = None
) -> Iterator[tuple[int, set[bytes]]]:
    """Ids, by team and in portions, that a reader of the new table sees otherwise than Postgres.

    First those whose rows contradict each other.
    """
    yield from _sets(contradictions(warehouse, teams))
    found = found or digests(connection, warehouse, teams)
    for keys in constrained_batches(found.differing, ROWS_AT_ONCE, get_len=found.ids, strict=False):
        chosen = {
            "team_ids": sorted({team_id for team_id, _ in keys}),
            "buckets": sorted({bucket for _, bucket in keys}),
            "mask": _mask(teams),
        }
        in_postgres = {
            (team_id, distinct_id.encode(), person_id)
            for team_id, distinct_id, person_id in postgres.execute(connection, "truth_of_buckets", chosen)
        }
        in_clickhouse = {row[:3] for row in warehouse.rows("new_of_buckets", chosen)}
        yield from _sets({row[:2] for row in in_postgres ^ in_clickhouse})


def contradictions(warehouse: Warehouse, teams: Teams) -> set[tuple[int, bytes]]:
    """Ids of which the new table holds rows of one version that say different things: a digest may miss them."""
    return {(team_id, distinct_id) for team_id, distinct_id in _by_range(warehouse, "contradictions", teams)}


def old_differs(warehouse: Warehouse, teams: Teams) -> Counter[int]:
    """For how many ids of each team the readers of the two tables see different persons."""
    differs: Counter[int] = Counter()
    for team_id, ids in _by_range(warehouse, "old_differs", teams):
        differs[team_id] += ids
    return differs


def _sets(ids: set[tuple[int, bytes]]) -> list[tuple[int, set[bytes]]]:
    return list(map_reduce(ids, itemgetter(0), itemgetter(1), set).items())


def differences(
    connection: Connection[Any], warehouse: Warehouse, team_id: int, distinct_ids: set[bytes]
) -> list[Difference]:
    """Those of the ids for which the new table and Postgres disagree at this moment."""
    found = []
    for ids in _portions(distinct_ids):
        seen = newest_rows(warehouse, team_id, ids)
        truth = _truth(connection, team_id, ids)
        found += [
            Difference(team_id, distinct_id, seen.get(distinct_id), truth.get(distinct_id))
            for distinct_id in ids
            if not _agree(seen.get(distinct_id), truth.get(distinct_id))
        ]
    return found


def old_answers(warehouse: Warehouse, team_id: int, distinct_ids: Iterable[bytes]) -> dict[bytes, UUID]:
    """What the old table's reader says of the ids, where it says anything."""
    return {
        distinct_id: person_id
        for ids in _portions(distinct_ids)
        for distinct_id, person_id in warehouse.rows("old_of_ids", _parameters(team_id, ids))
    }


def newest_rows(warehouse: Warehouse, team_id: int, distinct_ids: Iterable[bytes]) -> dict[bytes, Seen]:
    """What the new table holds of the ids, where it holds anything."""
    seen: dict[bytes, Seen] = {}
    for ids in _portions(distinct_ids):
        for distinct_id, person_id, is_deleted, version in warehouse.rows("new_of_ids", _parameters(team_id, ids)):
            row = Seen(person_id, bool(is_deleted), version)
            first = seen.get(distinct_id)
            seen[distinct_id] = replace(first, rivals=(*first.rivals, row)) if first else row
    return seen


def _by_range(warehouse: Warehouse, name: str, teams: Teams, **parameters: Any) -> Iterator[tuple[Any, ...]]:
    """The statement's rows for one range of a team's key after the other, each as large as memory allows.

    Small teams that share the statement are one.

    Aggregating a whole team in the order of its key would need no ranges, but memory for every part of the table at
    once: 177 MB for 12 parts of 20,000 rows, 885 MB for 60. One that meets the limit even by way of the disk is halved:
    ClickHouse 23.6 takes up to five times what 26.9 does.
    """
    if len(teams.ids) > 1:
        yield from _of_one(warehouse, name, {**teams.parameters, **parameters})
        return
    rows = aggregated_at_once(warehouse.max_memory_usage)
    yield from _of_range(warehouse, name, parameters, Slice(teams.ids[0], b"", None), teams.rows, rows)


def _of_range(
    warehouse: Warehouse, name: str, parameters: dict[str, Any], whole: Slice, rows_in_whole: int, rows: int
) -> Iterator[tuple[Any, ...]]:
    ranges = cut(warehouse, whole, rows_in_whole, rows)
    for number, one in enumerate(ranges):
        try:
            found = _of_one(warehouse, name, {**one.parameters, **parameters})
        except DatabaseError as error:
            if reaction(error) is not Reaction.SPLIT or rows <= FEWEST_ROWS:
                raise
            left = ranges[number:]
            yield from _of_range(warehouse, name, parameters, join(left), rows * len(left), rows // 2)
            return
        yield from found


def _of_one(warehouse: Warehouse, name: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """In memory, else by way of the disk: slower, and takes about 100 MB itself, but groups may be many and large."""
    try:
        return warehouse.rows(name, parameters)
    except DatabaseError as error:
        if reaction(error) is not Reaction.SPLIT or is_time_limit(error):
            raise
    return warehouse.rows(name, parameters, spilling(warehouse.max_memory_usage))


def _portions(distinct_ids: Iterable[bytes]) -> Iterator[tuple[bytes, ...]]:
    return constrained_batches(sorted(distinct_ids), ID_BYTES_AT_ONCE, IDS_AT_ONCE, strict=False)


def _parameters(team_id: int, ids: Iterable[bytes]) -> dict[str, Any]:
    return {"team_id": team_id, "distinct_ids": [distinct_id.hex() for distinct_id in ids]}


def _agree(seen: Seen | None, truth: Truth | None) -> bool:
    if seen is not None and seen.rivals:
        return False
    if seen is None or seen.is_deleted:
        return truth is None
    return truth is not None and seen.person_id == truth.person_id


def _truth(connection: Connection[Any], team_id: int, ids: Iterable[bytes]) -> dict[bytes, Truth]:
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


def _mask(teams: Teams) -> int:
    """Buckets of about ROWS_A_BUCKET rows: the hash's lowest bits. Of small teams each is a bucket."""
    wanted = max(1, teams.rows // ROWS_A_BUCKET) if len(teams.ids) == 1 else 0
    return min(1 << wanted.bit_length(), MOST_BUCKETS) - 1
