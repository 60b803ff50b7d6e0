"""Repairs the new table, and nothing else: what Postgres says is inserted, and what stands above it there goes."""

import time
from collections.abc import Iterable
from typing import Any

from more_itertools import chunked
from psycopg import Connection

from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.verify.comparing import Difference, Key, Seen, Truth, keyed, portions, truths

CORRECTION = -1
"""The version of our tombstones: above every copy, below whatever the application writes for an id that comes back."""
COLUMNS = ["team_id", "distinct_id", "person_id", "is_deleted", "version", "_timestamp", "_offset", "_partition"]
LISTED_AT_ONCE = 100_000
NAMES_A_DELETE = 8_000
"""Each is a mutation that looks at every part. Its text, 35 bytes per name, goes into Keeper, whose limit is 1 MB."""


def row_of(one: Difference) -> Seen:
    """What the new table should say: Postgres's row, or our tombstone."""
    if one.truth is not None:
        return Seen(one.truth.person_id, False, one.truth.version)
    assert one.seen is not None  # noqa: S101  (an id that neither side has is no difference)
    return Seen(one.seen.person_id, True, CORRECTION)


def goes(row: Seen, truth: Truth | None) -> bool:
    """Whether the row stands above what Postgres says, or at its version and against it: no row can outvote it then."""
    if truth is None:
        return row.version > CORRECTION or (row.version == CORRECTION and not row.is_deleted)
    if row.version != truth.version:
        return row.version > truth.version
    return row.is_deleted or row.person_id != truth.person_id


def has_to_go(one: Difference) -> bool:
    """Whether some row of the id has to go before its reader can be right."""
    return one.seen is not None and any(goes(row, one.truth) for row in (one.seen, *one.seen.rivals))


def insert(warehouse: Warehouse, wrong: Iterable[Difference]) -> None:
    """What Postgres says with Postgres's version; a tombstone of what it does not have."""
    now = int(time.time())
    rows = [
        (*one.key, row.person_id, int(row.is_deleted), row.version, now, 0, 0) for one in wrong for row in [row_of(one)]
    ]
    if rows:
        warehouse.insert("person_distinct_id2", COLUMNS, rows)


def take_away(connection: Connection[Any], warehouse: Warehouse, keys: Iterable[Key], asked: set[str]) -> None:
    """Deletes what has to go, named row by row. `asked` are names that are deleted already, as soon as the server can.

    The rows are listed before Postgres is asked: what the application writes meanwhile is in Postgres first, and is
    never taken for a row that stands above it. Nothing waits here.
    """
    for portion in portions(keys):
        listed = warehouse.rows("rows_of_ids", {**keyed(portion), "most": LISTED_AT_ONCE})
        truth = truths(connection, portion)
        found = {
            name.decode(): (team_id, distinct_id)
            for team_id, distinct_id, person_id, is_deleted, version, name in listed
            if goes(Seen(person_id, bool(is_deleted), version), truth.get((team_id, distinct_id)))
        }
        for names in chunked(found.keys() - asked, NAMES_A_DELETE):
            team_ids, distinct_ids = zip(*(found[name] for name in names), strict=True)
            warehouse.remove(
                "delete_rows",
                {
                    "team_ids": tuple(sorted(set(team_ids))),
                    "first": min(distinct_ids).hex(),
                    "last": max(distinct_ids).hex(),
                    "names": tuple(names),
                },
            )
            asked.update(names)
