"""Repairs the new table, and nothing else: what Postgres says is inserted, and what contradicts it there goes."""

import time
from collections.abc import Sequence

from more_itertools import constrained_batches

from pdi2.core.clickhouse import Warehouse
from pdi2.core.comparing import ID_BYTES_AT_ONCE, IDS_AT_ONCE, Difference, Seen, newest_rows

TOMBSTONE_STEP = 100
CORRECTION = -1
COLUMNS = ["team_id", "distinct_id", "person_id", "is_deleted", "version", "_timestamp", "_offset", "_partition"]
REMOVAL_SECONDS = 300.0
"""How long ClickHouse may take to carry out a DELETE; it does so between merges."""
LOOK_EVERY_SECONDS = 0.2


def repair(warehouse: Warehouse, team_id: int, wrong: list[Difference]) -> set[bytes]:
    """Inserts what Postgres says with Postgres's version, and takes away what contradicts it at that version.

    Returns the ids of which such rows are still there after REMOVAL_SECONDS.
    """
    if not wrong:
        return set()
    now = int(time.time())
    rows = [(one.distinct_id, row_of(one)) for one in wrong]
    warehouse.insert(
        "person_distinct_id2",
        COLUMNS,
        [(team_id, id_, row.person_id, int(row.is_deleted), row.version, now, 0, 0) for id_, row in rows],
    )
    contradicted = [one for one in wrong if rivals(one)]
    for batch in constrained_batches(
        contradicted, ID_BYTES_AT_ONCE, IDS_AT_ONCE, get_len=lambda one: len(one.distinct_id), strict=False
    ):
        _remove(warehouse, team_id, batch)
    return _remaining(warehouse, team_id, contradicted)


def row_of(one: Difference) -> Seen:
    """What the new table should say: Postgres's row, or a tombstone that beats the row that is there."""
    if one.truth is not None:
        return Seen(one.truth.person_id, False, one.truth.version)
    assert one.seen is not None  # noqa: S101  (an id that neither side has is no difference)
    version = one.seen.version + TOMBSTONE_STEP if one.seen.version >= 0 else CORRECTION
    return Seen(one.seen.person_id, True, version)


def rivals(one: Difference) -> list[Seen]:
    """Rows at Postgres's own version that say otherwise: no row can outvote them but the application's next one."""
    if one.truth is None or one.seen is None or one.seen.version != one.truth.version:
        return []
    return [row for row in (one.seen, *one.seen.rivals) if row.is_deleted or row.person_id != one.truth.person_id]


def _remove(warehouse: Warehouse, team_id: int, contradicted: Sequence[Difference]) -> None:
    """One DELETE, that is one mutation."""
    rows = [
        f"{one.distinct_id.hex()} {row.version} {row.person_id} {row.is_deleted:d}"
        for one in contradicted
        for row in rivals(one)
    ]
    ids = [one.distinct_id.hex() for one in contradicted]
    warehouse.remove("delete_rivals", {"team_id": team_id, "first": min(ids), "last": max(ids), "rivals": rows})


def _remaining(warehouse: Warehouse, team_id: int, contradicted: list[Difference]) -> set[bytes]:
    deadline = time.monotonic() + REMOVAL_SECONDS
    while contradicted:
        rows = newest_rows(warehouse, team_id, [one.distinct_id for one in contradicted])
        contradicted = [
            one
            for one in contradicted
            if rivals(Difference(team_id, one.distinct_id, rows.get(one.distinct_id), one.truth))
        ]
        if time.monotonic() > deadline:
            break
        if contradicted:
            time.sleep(LOOK_EVERY_SECONDS)
    return {one.distinct_id for one in contradicted}
