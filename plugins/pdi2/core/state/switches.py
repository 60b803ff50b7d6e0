"""The application's read and write switches: a row of posthog_asyncmigration and two instance settings.

The row's status 2 IS PostHog's read switch. We never set the row to 1 (Running), because PostHog's own health check
would take the run for one of its own, and might complete it with nothing verified.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any

from psycopg import Connection
from psycopg.rows import class_row

from pdi2.core.engines import postgres
from pdi2.core.engines.failures import MigrationError

NAME = "0003_fill_person_distinct_id2"
DESCRIPTION = "Set up a new table, person_distinct_id2, with one row per distinct_id, to replace person_distinct_id."
WRITES = "constance:posthog:PERSON_DISTINCT_ID_WRITES"
READS = "constance:posthog:PERSON_DISTINCT_ID_READS"
COPY_SHARE = 0.24
"""The copy's share of the time to copy and verify a row. 5M rows of one team on 2 cores took 1.9 s to copy and 6.1 s to
verify; docs/scale.md has the ranges."""


class Status(IntEnum):
    """PostHog's MigrationStatus."""

    NOT_STARTED = 0
    RUNNING = 1
    COMPLETED_SUCCESSFULLY = 2
    ERRORED = 3
    ROLLED_BACK = 4
    STARTING = 5
    FAILED_AT_STARTUP = 6


class ChangedElsewhereError(MigrationError):
    """Somebody else changed the migration row since this run last saw it."""


@dataclass(frozen=True)
class MigrationRow:
    id: int
    status: Status
    progress: int
    started_at: datetime | None
    finished_at: datetime | None


class Switches:
    def __init__(self, connection: Connection[Any]) -> None:
        self.connection = connection
        self.has_settings: bool = postgres.value(connection, "setting_table_exists")

    def row(self, name: str = NAME) -> MigrationRow | None:
        return postgres.execute(self.connection, "migration_row", {"name": name}, class_row(MigrationRow)).fetchone()

    def create_row(self) -> None:
        """Creates the row as PostHog itself does at start-up: with status 0 and its description."""
        postgres.execute(self.connection, "migration_row_create", {"name": NAME, "description": DESCRIPTION})

    def change(self, seen: Status, status: Status, progress: int | None = None) -> None:
        """Sets the status if it is still `seen`; raises ChangedElsewhereError if it is not."""
        changed = postgres.value(
            self.connection,
            "migration_row_change",
            {"name": NAME, "seen": int(seen), "status": int(status), "progress": progress},
        )
        if changed is None:
            row = self.row()
            now = Status(row.status).name if row else "gone"
            if row and row.status == Status.COMPLETED_SUCCESSFULLY:
                raise ChangedElsewhereError(
                    f"The row {NAME} of posthog_asyncmigration was {seen.name} when this run last saw it. Since then "
                    "it was completed by somebody else (PostHog's own runner, or an administrator), so readers use a "
                    "new table that this run has not proven. This run switched nothing. Trigger the audit, "
                    'audit_person_distinct_id2, and if it finds drift, again with {"repair": true}.'
                )
            raise ChangedElsewhereError(
                f"The row {NAME} of posthog_asyncmigration was {seen.name} when this run last saw it and is now "
                f"{now}: somebody else changed it. Nothing was switched. Find out who (PostHog's own runner, an "
                "administrator), and trigger a new run when they are done: it goes on from the last checkpoint."
            )

    def follow_ledger(self) -> None:
        """Sets the row's progress to the share of the work that is done, at most 99 before the switch."""
        postgres.execute(self.connection, "migration_row_progress", {"name": NAME, "copy_share": COPY_SHARE})

    def fail(self, seen: Status, reason: str) -> None:
        """Marks the row Errored, with the reason, where PostHog's administrators look for it."""
        with self.connection.transaction():
            self.change(seen, Status.ERRORED)
            row = self.row()
            assert row is not None  # noqa: S101  (changed above)
            postgres.execute(self.connection, "migration_error_add", {"description": reason, "migration_id": row.id})

    def try_out(self) -> None:
        """Writes what a run may write to the application's tables, within a transaction that the caller takes back."""
        self.create_row()
        row = self.row()
        assert row is not None  # noqa: S101  (created above)
        self.set_writes("both")
        self.change(Status(row.status), Status.STARTING, progress=0)
        self.fail(Status.STARTING, "a trial")
        self.change(Status.ERRORED, Status.COMPLETED_SUCCESSFULLY, progress=100)
        self.set_reads("new")

    def left_by_us(self, row: MigrationRow) -> bool:
        """Whether the row is as a run of this project left it: Starting, or Errored by its report."""
        what, since = {
            Status.STARTING: ("run_started", row.started_at),
            Status.ERRORED: ("marked_errored", row.finished_at),
        }.get(Status(row.status), ("", None))
        return bool(postgres.value(self.connection, "migration_row_left", {"what": what, "since": since}))

    def reads_are_new(self) -> bool:
        """PostHog's own switch: the row's status."""
        row = self.row()
        return row is not None and row.status == Status.COMPLETED_SUCCESSFULLY

    def old_is_written(self) -> bool:
        """Whether the old table is still written. Releases without this setting stop writing it at the switch: those
        that are due for the migration, and those that PostHog is upgraded to afterwards."""
        writes = self.writes()
        return not self.reads_are_new() if writes is None else writes != "new"

    def both_are_written(self) -> bool:
        """Whether both tables are written, before the switch. A release without instance settings always does it."""
        return not self.has_settings or self.writes() == "both"

    def writes(self) -> str | None:
        """ "old", "both" or "new"; None on releases without this setting, which write both tables until the switch."""
        return postgres.value(self.connection, "setting", {"key": WRITES}) if self.has_settings else None

    def reads(self) -> str | None:
        """ "old" or "new"; None on releases without instance settings, whose only switch is the row."""
        return postgres.value(self.connection, "setting", {"key": READS}) if self.has_settings else None

    def set_back(self) -> str | None:
        """After the switch: what to say if somebody has set a setting back by hand; None if nobody has."""
        if "old" not in (self.writes(), self.reads()):
            return None
        return (
            f"The migration row says that the migration is complete, but PERSON_DISTINCT_ID_WRITES is "
            f'"{self.writes()}" and PERSON_DISTINCT_ID_READS is "{self.reads()}": somebody set one of them back by '
            'hand. Find out who and why. Set the first to "both" (to "new" if old writes had stopped before) and the '
            'second to "new", and trigger audit_person_distinct_id2 with {"repair": true}: it writes what the new '
            "table missed."
        )

    def set_writes(self, value: str) -> None:
        self._set(WRITES, value)

    def set_reads(self, value: str) -> None:
        self._set(READS, value)

    def _set(self, key: str, value: str) -> None:
        if self.has_settings:
            postgres.execute(self.connection, "setting_set", {"key": key, "value": value})
