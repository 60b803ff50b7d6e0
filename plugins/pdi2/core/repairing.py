"""Repairs the new table, and nothing else: what Postgres says is inserted, and what stands above it there goes."""

import time
from collections.abc import Iterable, Sequence

from more_itertools import chunked

from pdi2.core.clickhouse import Warehouse
from pdi2.core.comparing import Difference, Seen, keyed, portions

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


def goes(row: Seen, right: Seen) -> bool:
    """Whether the row stands above the right one, or at its version and says otherwise: then no row can outvote it."""
    if row.version != right.version:
        return row.version > right.version
    return row.is_deleted != right.is_deleted or (not right.is_deleted and row.person_id != right.person_id)


def has_to_go(one: Difference) -> bool:
    """Whether some row of the id has to go before its reader can be right."""
    return one.seen is not None and any(goes(row, row_of(one)) for row in (one.seen, *one.seen.rivals))


def insert(warehouse: Warehouse, wrong: Iterable[Difference]) -> None:
    """What Postgres says with Postgres's version; a tombstone of what it does not have."""
    now = int(time.time())
    rows = [
        (*one.key, row.person_id, int(row.is_deleted), row.version, now, 0, 0) for one in wrong for row in [row_of(one)]
    ]
    if rows:
        warehouse.insert("person_distinct_id2", COLUMNS, rows)


def take_away(warehouse: Warehouse, wrong: Sequence[Difference], asked: set[str]) -> None:
    """Deletes what has to go, named row by row. `asked` are names that are deleted already, as soon as the server can.

    Nothing waits here.
    """
    right = {one.key: row_of(one) for one in wrong}
    for portion in portions(right):
        listed = warehouse.rows("rows_of_ids", {**keyed(portion), "most": LISTED_AT_ONCE})
        found = {
            name.decode(): (team_id, distinct_id)
            for team_id, distinct_id, person_id, is_deleted, version, name in listed
            if goes(Seen(person_id, bool(is_deleted), version), right[team_id, distinct_id])
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
