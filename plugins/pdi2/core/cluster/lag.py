"""Measures how long what the application writes to Postgres takes to reach both tables, while a run goes on."""

import logging
from datetime import timedelta

import psycopg
from clickhouse_connect.driver.exceptions import ClickHouseError

from pdi2.core.engines import postgres
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import describe
from pdi2.core.state.ledger import Ledger

log = logging.getLogger(__name__)

MEASURED = "lag_measured"
EVERY = timedelta(minutes=1)


def newest_id(ledger: Ledger, or_this: int | None = None) -> tuple[int, int, str]:
    """Of Postgres's newest id, or of that in row `or_this` while it exists: its row, its team, and the id itself."""
    return postgres.execute(ledger.connection, "newest_id", {"or_this": or_this}).fetchone() or (0, 0, "")


def measure(ledger: Ledger, warehouse: Warehouse) -> None:
    """Measures the lag, once per EVERY. That is only information, so the work goes on if it cannot be had."""
    try:
        _look(ledger, warehouse)
    except (ClickHouseError, psycopg.Error) as error:
        log.warning("The replication lag was not measured: %s", describe(error))


def _look(ledger: Ledger, warehouse: Warehouse) -> None:
    """Looks, without waiting, whether Postgres's newest id has reached both tables, and records that once per EVERY.

    Postgres does not say when a row was written, so the time counts from the first look at an id. One that is not there
    yet is looked for again at each call, so the lag is known as exactly as the calls are frequent. An id from before
    the run may be in the old table alone, and tells nothing.
    """
    before, now = ledger.newest(MEASURED, of_run=True), ledger.clock()
    waiting: int | None = before.detail["waiting"] if before else None
    is_due = before is None or now - before.at >= EVERY
    if not (waiting or is_due):
        return
    row_id, team_id, distinct_id = newest_id(ledger, or_this=waiting)
    started = ledger.latest_of_run("run_started")
    if started is None or row_id <= started.get("newest_id", row_id):
        return
    since = before.detail["since"] if before and row_id == waiting else now.timestamp()
    there = warehouse.rows("id_there", {"team_id": team_id, "distinct_id": distinct_id.encode().hex()})[0][0]
    if there or is_due or row_id != waiting:
        seconds = round(now.timestamp() - since, 1)
        ledger.record(MEASURED, since=since, seconds=seconds, waiting=None if there else row_id)
