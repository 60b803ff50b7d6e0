"""The application changes ids at the worst moments of a copy and its verification, statement by statement."""

import pytest
from conftest import System
from pdi2.core.copy.copying import copy_team
from pdi2.core.verify.verifying import verify_team
from stories import NO_WAIT, TEAM, Meanwhile, add_teams, enable, merge, plan, stop_merges

from demo.schema import Table
from demo.writer import Writer, deliver

MOMENTS = {
    "between plan and copy": None,
    "after the ids are told apart": "told_apart",
    "after the copies are counted": "copied",
    "before the proof": "now",
    "after ClickHouse's first pass": "digest_new",
    "during the second pass": "new_of_buckets",
    "before the repair": "new_of_ids",
}


def before(writer: Writer) -> None:
    """Ids of every kind, each with its own person, only in the old table."""
    for number in range(30):
        writer.create(TEAM, f"simple {number}")
    for id_ in ("moved", "winner", "deleted", "again", "moved and deleted"):
        writer.create(TEAM, id_)
    for id_ in ("loser", "loser's other"):
        writer.identify(TEAM, id_, writer.create(TEAM, id_))
    writer.relink(TEAM, "simple 7")
    writer.delete(TEAM, "again")
    writer.flush()
    writer.create(TEAM, "lost on the way")
    writer.outbox.clear()


def meanwhile(writer: Writer) -> None:
    person = writer.create(TEAM, "created")
    writer.identify(TEAM, "moved", person)
    writer.identify(TEAM, "loser's other", person)
    writer.merge(TEAM, person, writer.create(TEAM, "created too"))
    writer.delete(TEAM, "deleted")
    writer.identify(TEAM, "moved and deleted", writer.create(TEAM, "for a moment"))
    writer.delete(TEAM, "moved and deleted")
    writer.relink(TEAM, "winner")
    writer.create(TEAM, "again")
    writer.relink(TEAM, "simple 3")


@pytest.mark.parametrize("first", Table)
@pytest.mark.parametrize("moment", MOMENTS)
def test_ids_created_moved_merged_deleted_and_created_again_end_as_postgres_has_them(
    system: System, moment: str, first: Table
) -> None:
    """One table gets the change at once, and merges; the other gets it once everything is verified."""
    add_teams(system, TEAM)
    stop_merges(system)
    writer = system.writer()
    before(writer)
    ledger = system.ledger()
    enable(system, ledger)
    plan(system, ledger)

    def happen() -> None:
        meanwhile(writer)
        deliver(system.clickhouse, [message for message in writer.outbox if message.table is first])
        merge(system)

    statement = MOMENTS[moment]
    if statement is None:
        happen()
    warehouse = Meanwhile(system, statement or "", happen)
    copy_team(ledger, warehouse, TEAM)
    merge(system)
    verify_team(ledger, warehouse, TEAM, NO_WAIT)
    deliver(system.clickhouse, [message for message in writer.outbox if message.table is not first])

    assert statement is None or warehouse.happened
    assert system.disagreements() == {}
    merge(system)
    assert system.disagreements() == {}
