"""The lag between Postgres and ClickHouse, as copies look at it between slices."""

from typing import Any

import pytest
from conftest import System
from pdi2.core.cluster import lag
from pdi2.core.state.ledger import Ledger
from stories import TEAM, add_teams, enable

from demo.writer import deliver


@pytest.fixture
def ledger(system: System) -> Ledger:
    add_teams(system, TEAM)
    ledger = system.ledger()
    enable(system, ledger)
    return ledger


def look(system: System, ledger: Ledger, seconds_later: int = 0) -> list[dict[str, Any]]:
    """Measures, as if that much time had passed, and returns every measurement so far."""
    system.postgres.execute(
        "UPDATE pdi2_migration.event SET at = at - make_interval(secs => %s), "
        "detail = jsonb_set(detail, '{since}', to_jsonb((detail ->> 'since')::float - %s)) WHERE what = 'lag_measured'",
        [seconds_later, seconds_later],
    )
    system.postgres.execute(
        "UPDATE pdi2_migration.run SET started_at = started_at - make_interval(secs => %s)", [seconds_later]
    )
    lag.measure(ledger, system.warehouse())
    return [
        detail
        for (detail,) in system.postgres.execute(
            "SELECT detail FROM pdi2_migration.event WHERE what = 'lag_measured' ORDER BY id"
        )
    ]


def test_an_id_is_looked_for_until_both_tables_have_it(system: System, ledger: Ledger) -> None:
    writer = system.writer()
    writer.create(TEAM, "first")
    [first] = look(system, ledger)
    writer.create(TEAM, "second, which is not what is looked for")
    assert look(system, ledger, seconds_later=20) == [pytest.approx(first | {"since": first["since"] - 20})]
    *_, still = look(system, ledger, seconds_later=50)
    to_old, to_new = writer.outbox[:2]
    deliver(system.clickhouse, [to_old])
    *_, half = look(system, ledger, seconds_later=60)
    deliver(system.clickhouse, [to_new])
    *_, there = look(system, ledger, seconds_later=5)

    assert first["waiting"] == still["waiting"] == half["waiting"]
    assert there["waiting"] is None
    assert [round(one["seconds"], -1) for one in (first, still, half)] == [0, 70, 130]
    assert 135 <= there["seconds"] < 140


def test_once_known_the_lag_is_measured_once_per_minute(system: System, ledger: Ledger) -> None:
    writer = system.writer()
    writer.create(TEAM, "there at once")
    writer.flush()
    [known] = look(system, ledger)
    writer.create(TEAM, "not there yet")

    assert known["waiting"] is None
    assert len(look(system, ledger, seconds_later=50)) == 1
    assert look(system, ledger, seconds_later=10)[-1]["waiting"] is not None


def test_an_id_that_is_deleted_is_no_longer_looked_for(system: System, ledger: Ledger) -> None:
    writer = system.writer()
    writer.create(TEAM, "stays")
    writer.flush()
    writer.create(TEAM, "goes")
    look(system, ledger)
    writer.delete(TEAM, "goes", silently=True)

    assert look(system, ledger, seconds_later=1)[-1]["waiting"] is None


def test_an_id_from_before_the_run_tells_nothing(system: System) -> None:
    add_teams(system, TEAM)
    writer, ledger = system.writer(), system.ledger()
    writer.create(TEAM, "in the old table alone")
    writer.flush()
    enable(system, ledger)

    assert look(system, ledger) == []
