"""Turns dual writes on: from then on the application writes both tables."""

from dataclasses import asdict

from pdi2.core.cluster.lag import newest_id
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import MigrationError
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.ownership import claim
from pdi2.core.state.settings import Settings
from pdi2.core.state.switches import NAME, Status, Switches

ENABLED = "dual_writes_enabled"
MOST_KNOWN = 10_000
FUTURE_SECONDS = 7 * 86_400
"""A link stamped at most this far in the future may still come into a window of this migration."""


class DualWriteError(MigrationError):
    """The dual write cannot be enabled or proven."""


def enable(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> None:
    """Sets writes to "both" and the row to Starting, in one transaction: everything or nothing."""
    if settings.dry_run:
        raise MigrationError(
            "This run is a dry run, which writes nothing, not even if this task is run by hand. Trigger the DAG "
            "without dry_run."
        )
    ledger.create()
    switches = Switches(ledger.connection)
    begins = switches.writes() != "both" or ledger.latest(ENABLED) is None
    known = _stamped_ahead(warehouse) if begins else []  # before the transaction: this reads the whole old table
    with ledger.transaction():
        switches.create_row()
        row = switches.row()
        assert row is not None  # noqa: S101  (created above)
        claim(ledger, asdict(settings))
        was = switches.writes()
        if row.status in (Status.COMPLETED_SUCCESSFULLY, Status.RUNNING) or was == "new":
            raise DualWriteError(
                f"The row {NAME} has become {Status(row.status).name} since preflight looked, or the application "
                "writes the new table only, so enabling the dual write would undo a switch or take over somebody "
                "else's run. Nothing was changed. Trigger a new run: its preflight says what is left to do."
            )
        if not switches.left_by_us(row) or not switches.both_are_written():
            # As after a rollback or a run of PostHog's own runner, whose rows of 1970 no recheck would look at.
            ledger.verify_all_again()
        switches.set_writes("both")
        switches.change(Status(row.status), Status.STARTING, progress=0)  # the plan says how far earlier runs came
        now = warehouse.rows("now")[0][0]
        if begins or was != "both":
            ledger.record(ENABLED, enabled_at=now, known=known, writes_before=was)
        newest, *_ = newest_id(ledger)
        ledger.record("run_started", at=now, newest_id=newest, settings=asdict(settings))


def _stamped_ahead(warehouse: Warehouse) -> list[str]:
    """The hashes of the links that have a time in the future. They show neither a missed write nor a dual one."""
    (now,) = warehouse.rows("now")[0]
    window = {"window_start": now, "window_end": now + FUTURE_SECONDS}
    ahead = warehouse.rows("links_ahead", {**window, "most": MOST_KNOWN + 1})
    if len(ahead) > MOST_KNOWN:
        raise DualWriteError(
            f"More than {MOST_KNOWN:,} links in person_distinct_id have a time in the future: a writer's clock, "
            "or ClickHouse's, is wrong, and the dual write cannot be proven. Nothing was changed. Set the clock "
            "right, wait until those times have passed, and trigger the run again."
        )
    return [str(link) for (link,) in ahead]
