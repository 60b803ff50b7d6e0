"""Repairs the new table, and nothing else: inserts what Postgres says, and deletes what would outvote it."""

import time
from collections.abc import Iterable
from typing import Any

from clickhouse_connect.driver.exceptions import DatabaseError
from more_itertools import chunked
from psycopg import Connection

from pdi2.core.cluster.replicas import explained
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import SAFE, WaitError, next_step, waits
from pdi2.core.verify.comparing import Difference, Key, Seen, Truth, keyed, portions, truths

CORRECTION = -1
"""The version of our tombstones: above every copy, below anything the application writes for an id that comes back."""
COLUMNS = ["team_id", "distinct_id", "person_id", "is_deleted", "version", "_timestamp", "_offset", "_partition"]
LISTED_AT_ONCE = 100_000
NAMES_A_DELETE = 8_000
"""Each DELETE is a mutation that looks at every part. Its text, 35 bytes per name, goes into Keeper, whose limit is
1 MB."""


def row_of(one: Difference) -> Seen:
    """The row that the new table should have: Postgres's row, or our tombstone."""
    if one.truth is not None:
        return Seen(one.truth.person_id, False, one.truth.version)
    assert one.seen is not None  # noqa: S101  (an id that neither side has is not a difference)
    return Seen(one.seen.person_id, True, CORRECTION)


def goes(row: Seen, truth: Truth | None) -> bool:
    """Whether the row must be deleted: it has a version above Postgres's, or the same version and says otherwise.

    No inserted row could outvote it.
    """
    if truth is None:
        return row.version > CORRECTION or (row.version == CORRECTION and not row.is_deleted)
    if row.version != truth.version:
        return row.version > truth.version
    return row.is_deleted or row.person_id != truth.person_id


def has_to_go(one: Difference) -> bool:
    """Whether some row of the id must be deleted before a reader can see what is right."""
    return one.seen is not None and any(goes(row, one.truth) for row in (one.seen, *one.seen.rivals))


def insert(warehouse: Warehouse, wrong: Iterable[Difference]) -> None:
    """Inserts what Postgres says, with Postgres's version, or a tombstone for an id that Postgres does not have."""
    now = int(time.time())
    rows = [
        (*one.key, row.person_id, int(row.is_deleted), row.version, now, 0, 0) for one in wrong for row in [row_of(one)]
    ]
    if not rows:
        return
    try:
        warehouse.insert("person_distinct_id2", COLUMNS, rows)
    except DatabaseError as error:
        if not waits(error):
            raise
        raise WaitError(f"The repair waits: {explained(warehouse, error)} {SAFE} {next_step(error)}") from error


def take_away(connection: Connection[Any], warehouse: Warehouse, keys: Iterable[Key], asked: set[str]) -> set[Key]:
    """Deletes the rows that have to go, each named in full. `asked` has the names whose DELETE was already requested.
    Returns the ids that have such rows: one part of the table after the other loses them.

    The rows are listed before Postgres is asked. What the application writes meanwhile reaches Postgres first, so it is
    never mistaken for a row above Postgres's version. This does not wait for the DELETE.
    """
    pending: set[Key] = set()
    for portion in portions(keys):
        listed = warehouse.rows("rows_of_ids", {**keyed(portion), "most": LISTED_AT_ONCE})
        truth = truths(connection, portion)
        found = {
            name.decode(): (team_id, distinct_id)
            for team_id, distinct_id, person_id, is_deleted, version, name in listed
            if goes(Seen(person_id, bool(is_deleted), version), truth.get((team_id, distinct_id)))
        }
        pending.update(found.values())
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
    return pending
