"""Shows what the migration is worth: how long the application's read takes on each table."""

import logging
import statistics
import time

from clickhouse_connect.driver.exceptions import DatabaseError

from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import describe
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.slices import Slice, cut

log = logging.getLogger(__name__)

READINGS = 5
MOST_ROWS = 200_000
"""How much of the largest team is read, so that each read is quick and takes little memory."""


def measure(ledger: Ledger, warehouse: Warehouse) -> None:
    """Records the median seconds of both reads. This is only information: a failure is logged, and the run goes on."""
    teams = ledger.teams()
    if not teams:
        return
    largest = teams[0]
    taken: dict[str, list[float]] = {"read_old": [], "read_new": []}
    try:
        part = cut(warehouse, Slice(largest.team_id, b"", None), largest.rows_source, MOST_ROWS)[0]
        for _ in range(READINGS):
            for statement, seconds in taken.items():
                began = time.monotonic()
                [[ids]] = warehouse.rows(statement, part.parameters)
                seconds.append(time.monotonic() - began)
    except DatabaseError as error:
        log.warning("The time of reads was not measured: %s", describe(error))
        return
    medians = {statement: statistics.median(seconds) for statement, seconds in taken.items()}
    ledger.record("read_times", team_id=largest.team_id, ids=ids, readings=READINGS, **medians)
