"""Mutations of the new table: what somebody's ALTER or DELETE removes leaves no newer row that a recheck would find."""

from typing import NamedTuple

from pdi2.core.cluster.ours import plain
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import LONGEST_TEXT
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.words import counted

SEEN = "mutation_seen"
REMOVED = "rows_removed"
"""Rows are gone that no mutation took."""


class Mutation(NamedTuple):
    """`parts`: left to do; `began` is in seconds since the epoch, by the clock of the server that was asked for it;
    `is_ours`: a repair's DELETE, or one of nothing."""

    name: str
    command: str
    parts: int
    failure: str
    began: int
    is_done: bool
    is_ours: bool


def listed(warehouse: Warehouse) -> list[Mutation]:
    """Those that ClickHouse still lists; of finished ones, it keeps the last hundred."""
    return [Mutation(*map(plain, row)) for row in warehouse.rows("mutations_of_new")]


def failing(found: list[Mutation]) -> list[str]:
    """A mutation that fails holds up every later one, including our DELETEs."""
    return [
        f"The mutation {one.name} of person_distinct_id2 fails: {one.command}: {one.failure[:LONGEST_TEXT]}. Remove "
        f"the cause, or end it: KILL MUTATION WHERE mutation_id = '{one.name}'."
        for one in found
        if one.failure and not one.is_done
    ]


def unfinished(found: list[Mutation]) -> str | None:
    """What to wait for while mutations may still remove or change verified rows; None if all are finished."""
    if not (going := [one for one in found if not one.is_done]):
        return None
    first = going[0]
    return (
        f"ClickHouse is still carrying out {counted(len(going), 'mutation')} of person_distinct_id2. The first is "
        f"{first.name}, with {counted(first.parts, 'part')} to do: {first.command}. Nothing was changed. Airflow tries "
        "again; if this goes on, look at system.mutations and whether merges are stopped, then trigger the run again."
    )


def somebodys(ledger: Ledger, warehouse: Warehouse) -> list[Mutation]:
    """Those that are not ours. The ledger remembers them, because KILL MUTATION ends one and brings nothing back."""
    found = [one for one in listed(warehouse) if not one.is_ours]
    names = {f"{one.name} {one.began}" for one in found}
    if names - set((ledger.latest(SEEN) or {}).get("names", [])):
        ledger.record(SEEN, names=sorted(names), command=found[-1].command)
    return found


def last_seen(ledger: Ledger) -> str:
    """What changes whenever one of somebody's mutations is seen for the first time, or rows are gone without one. Its
    own time is another clock's."""
    newest = ledger.newest(SEEN, REMOVED)
    return newest.at.isoformat() if newest else ""
