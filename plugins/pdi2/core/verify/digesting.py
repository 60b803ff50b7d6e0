"""Finds by digests whether teams agree with Postgres: one pass over both sides at once, and a second if they differ."""

import logging
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from clickhouse_connect.driver.exceptions import DatabaseError
from more_itertools import peekable
from psycopg import Connection, ServerCursor

from pdi2 import sql
from pdi2.core.cluster.pressure import TELL_EVERY_SECONDS
from pdi2.core.engines import postgres
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import Reaction, is_time_limit, reaction
from pdi2.core.engines.statement_settings import spilling
from pdi2.core.state.slices import FEWEST_ROWS, Slice, Teams, aggregated_at_once, cut, join
from pdi2.core.verify.comparing import Key

log = logging.getLogger(__name__)

ROWS_A_BUCKET = 4_000
MOST_BUCKETS = 1 << 12
"""For each range of a large team, ClickHouse returns one row per bucket."""
DIGESTED_TO_AGGREGATED = 2.5
"""A digest may aggregate this many times more rows than other statements: it takes up to 300 bytes per row (26.9)."""
LISTED_AT_ONCE = 50_000
"""Rows of either database whose ids are listed and held at the same time to find what differs."""
SAMPLED_IDS = 100_000
"""How many ids of a team are sampled to estimate how often the old table's reader is wrong."""
ANY_VERSION = -(1 << 63)


@dataclass(frozen=True, slots=True)
class Bucket:
    """The ids whose contents end in the same bits: their number, the sum of the contents, and the sum of content times
    version, which shows rows that have the right person but another version.

    Only ClickHouse has the other two: the ids whose newest rows contradict each other, and the ids whose newest row is
    a tombstone of the application.
    """

    ids: int
    contents: int
    versions: int
    contradictory: int = 0
    tombstones: int = 0


NOTHING = Bucket(0, 0, 0)
Buckets = dict[tuple[int, int], Bucket]
"""By team and bucket number."""


@dataclass(frozen=True)
class Digests:
    """Digests of teams as a reader of the new table sees them, and as Postgres has them.

    `row_ids`: by team, the greatest id of Postgres's rows and the sum of their ids.
    """

    mask: int
    seen: Buckets
    truth: Buckets
    row_ids: dict[int, tuple[int, int]]

    def differing(self, *facts: str) -> set[tuple[int, int]]:
        """The buckets in which one of the facts differs between the two sides."""
        return {
            key
            for key in self.seen.keys() | self.truth.keys()
            for seen, truth in [(self.seen.get(key, NOTHING), self.truth.get(key, NOTHING))]
            if any(getattr(seen, fact) != getattr(truth, fact) for fact in facts)
        }


def digests(connection: Connection[Any], warehouse: Warehouse, teams: Teams) -> Digests:
    """The digests of both databases, computed at the same time in one pass each."""
    mask = _mask(teams)
    truth: Buckets = {}
    row_ids: dict[int, tuple[int, int]] = {}
    with ThreadPoolExecutor(1) as beside:
        answer = beside.submit(_truth_digest, connection, teams, mask)
        try:
            seen = _digest_of_new(warehouse, teams, mask)
            while not wait([answer], TELL_EVERY_SECONDS).done:
                log.info("Postgres still computes the digest of %s", teams)
        except BaseException:
            connection.cancel_safe()
            raise
    for team_id, bucket, ids, contents, versions, last, sum_of_ids in answer.result():
        truth[team_id, bucket] = Bucket(ids, int(contents), int(versions))
        last_before, sum_before = row_ids.get(team_id, (0, 0))
        row_ids[team_id] = max(last_before, last), sum_before + int(sum_of_ids)
    return Digests(mask, seen, truth, row_ids)


def _truth_digest(connection: Connection[Any], teams: Teams, mask: int) -> list[tuple[Any, ...]]:
    with connection.transaction():
        postgres.execute(connection, "offer_workers")
        return postgres.execute(connection, "truth_digest", {"team_ids": list(teams.team_ids), "mask": mask}).fetchall()


def _digest_of_new(warehouse: Warehouse, teams: Teams, mask: int) -> Buckets:
    seen: Buckets = {}
    most = round(DIGESTED_TO_AGGREGATED * aggregated_at_once(warehouse.max_memory_usage))
    for _, rows in _by_range(warehouse, "digest_new", teams, most, mask=mask, least_version=ANY_VERSION):
        for team_id, number, ids, contents, versions, contradictory, tombstones in rows:
            before = seen.get((team_id, number), NOTHING)
            seen[team_id, number] = Bucket(
                before.ids + ids,
                before.contents + int(contents),
                before.versions + int(versions),
                before.contradictory + contradictory,
                before.tombstones + tombstones,
            )
    return seen


def by_team(buckets: Buckets) -> dict[int, str]:
    """One digest per team that people can compare: `ids:sum of contents`."""
    sums: dict[int, tuple[int, int]] = {}
    for (team_id, _), bucket in buckets.items():
        ids, contents = sums.get(team_id, (0, 0))
        sums[team_id] = ids + bucket.ids, contents + bucket.contents
    return {team_id: f"{ids}:{contents}" for team_id, (ids, contents) in sums.items()}


def suspects(
    connection: Connection[Any], warehouse: Warehouse, teams: Teams, found: Digests | None = None
) -> Iterator[set[Key]]:
    """The ids, in portions, that the new table may not have as Postgres says, judging by the digests.

    If contents differ in a bucket, a second pass lists its ids on both sides. If only versions differ, the suspects are
    the ids that the application wrote at a version above 0, because a copy does not carry Postgres's version.
    """
    found = found or digests(connection, warehouse, teams)
    contents = found.differing("ids", "contents", "contradictory")
    if contents:
        yield from _listed(connection, warehouse, teams, _flagged(contents, found.mask))
    if versions := found.differing("versions") - contents:
        for _, rows in _new_of_buckets(warehouse, teams, _flagged(versions, found.mask), least_version=1):
            yield {row[:2] for row in rows}


def _listed(
    connection: Connection[Any], warehouse: Warehouse, teams: Teams, flagged: Mapping[str, Any]
) -> Iterator[set[Key]]:
    """The ids in flagged buckets that differ between the two sides or contradict themselves, by one pass in key order.

    Postgres sorts its side, and keeps the result until it is fetched.
    """
    with ServerCursor(connection, "truth_of_buckets", withhold=True) as cursor:
        cursor.itersize = LISTED_AT_ONCE
        with connection.transaction():
            postgres.execute(connection, "offer_workers")
            cursor.execute(sql.postgres("truth_of_buckets").encode(), {**flagged, "flags": flagged["flags"].encode()})
        truth = peekable((team_id, id_.encode(), content, version) for team_id, id_, content, version in cursor)
        for piece, rows in _new_of_buckets(warehouse, teams, flagged, least_version=ANY_VERSION):
            upper = piece.upper if isinstance(piece, Slice) else None
            begin, is_over = 0, False
            while not is_over:  # where the new table lacks many ids, a range of it has far more of Postgres's rows
                in_postgres: dict[tuple[Any, ...], int] = {}
                while truth and (upper is None or truth.peek()[1] < upper) and len(in_postgres) < LISTED_AT_ONCE:
                    *fact, version = next(truth)
                    in_postgres[tuple(fact)] = version
                is_over = len(in_postgres) < LISTED_AT_ONCE
                end = len(rows) if is_over else bisect_right(rows, tuple(fact[:2]), key=lambda row: row[:2])
                yield _differing(in_postgres, rows[begin:end])
                begin = end


def _differing(in_postgres: Mapping[tuple[Any, ...], int], rows: list[tuple[Any, ...]]) -> set[Key]:
    in_clickhouse = {row[:3]: row[3] for row in rows}
    return {
        *(fact[:2] for fact in in_postgres.keys() ^ in_clickhouse.keys()),
        *(fact[:2] for fact, newest in in_clickhouse.items() if 0 < newest != in_postgres.get(fact, newest)),
        *(row[:2] for row in rows if row[4]),
    }


def _new_of_buckets(
    warehouse: Warehouse, teams: Teams, flagged: Mapping[str, Any], least_version: int
) -> Iterator[tuple[Slice | Teams, list[tuple[Any, ...]]]]:
    most = min(LISTED_AT_ONCE, aggregated_at_once(warehouse.max_memory_usage))
    return _by_range(warehouse, "new_of_buckets", teams, most, **flagged, least_version=least_version)


def _flagged(keys: set[tuple[int, int]], mask: int) -> dict[str, Any]:
    """The parameters that select flagged buckets. Small teams that share a statement have one bucket each and one flag
    for all of them."""
    buckets = {bucket for _, bucket in keys}
    return {
        "team_ids": sorted({team_id for team_id, _ in keys}),
        "flags": "".join("1" if bucket in buckets else "0" for bucket in range(mask + 1)),
        "mask": mask,
    }


def old_differs(warehouse: Warehouse, teams: Teams) -> Counter[int]:
    """By team, the approximate number of ids for which the readers of the two tables see different persons.

    For a team of more than SAMPLED_IDS rows, this is an estimate from ids sampled by hash.
    """
    one_of = max(1, teams.rows // SAMPLED_IDS) if len(teams.team_ids) == 1 else 1
    differs: Counter[int] = Counter()
    most = aggregated_at_once(warehouse.max_memory_usage) * one_of
    for _, counted in _by_range(warehouse, "old_differs", teams, most, one_of=one_of):
        differs.update({team_id: ids * one_of for team_id, ids in counted})
    return differs


def _by_range(
    warehouse: Warehouse, name: str, teams: Teams, most: int, **parameters: Any
) -> Iterator[tuple[Slice | Teams, list[tuple[Any, ...]]]]:
    """Runs the statement on one range of a team's key after the other, each of about `most` rows.

    Small teams that share the statement count as one range.

    Aggregating a whole team in key order would need no ranges, but needs memory for every part of the table at
    once: 177 MB for 12 parts of 20,000 rows, 885 MB for 60.
    """
    if len(teams.team_ids) > 1:
        yield teams, in_memory_or_spilling(warehouse, name, {**teams.parameters, **parameters})
        return
    yield from _of_range(warehouse, name, parameters, Slice(teams.team_ids[0], b"", None), teams.rows, most)


def _of_range(
    warehouse: Warehouse, name: str, parameters: dict[str, Any], whole: Slice, rows_in_whole: int, rows: int
) -> Iterator[tuple[Slice | Teams, list[tuple[Any, ...]]]]:
    """Halves the ranges if one meets the limit though it spills: ClickHouse 23.6 takes up to five times the memory."""
    ranges = cut(warehouse, whole, rows_in_whole, rows, "person_distinct_id2")  # the old table may be gone
    tell_at = time.monotonic() + TELL_EVERY_SECONDS
    for number, one in enumerate(ranges):
        if time.monotonic() > tell_at:
            log.info("Compared range %s of %s of team %s", f"{number:,}", f"{len(ranges):,}", whole.team_id)
            tell_at = time.monotonic() + TELL_EVERY_SECONDS
        try:
            found = in_memory_or_spilling(warehouse, name, {**one.parameters, **parameters})
        except DatabaseError as error:
            if reaction(error) is not Reaction.SPLIT or rows <= FEWEST_ROWS:
                raise
            left = ranges[number:]
            yield from _of_range(warehouse, name, parameters, join(left), rows * len(left), rows // 2)
            return
        yield one, found


def in_memory_or_spilling(warehouse: Warehouse, name: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Runs the statement in memory, or if it does not fit, spilling to disk.

    Spilling is slower and takes about 100 MB itself, but allows many large groups.
    """
    try:
        return warehouse.rows(name, parameters)
    except DatabaseError as error:
        if reaction(error) is not Reaction.SPLIT or is_time_limit(error):
            raise
    return warehouse.rows(name, parameters, spilling(warehouse.max_memory_usage))


def _mask(teams: Teams) -> int:
    """The lowest bits of the content that number a bucket of about ROWS_A_BUCKET rows.

    Small teams that share a statement have one bucket each.
    """
    wanted = max(1, teams.rows // ROWS_A_BUCKET) if len(teams.team_ids) == 1 else 0
    return min(1 << wanted.bit_length(), MOST_BUCKETS) - 1
