"""Until when reads can be returned to the old table, which people must know before they approve the switch."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from pdi2.core.state.ledger import Ledger
from pdi2.core.state.switches import Switches

UNTIL_A_RUN = "for as long as both tables are written: until a run with stop_old_writes on."


@dataclass(frozen=True)
class WayBack:
    """Whether a rollback is possible, as a `text`, and `until` when if that is known.

    Before the switch, this is what will hold after it.
    """

    text: str
    until: datetime | None = None


def way_back(ledger: Ledger, stop_old_writes: bool, read_cache_seconds: float) -> WayBack:
    """What a rollback can do now or, before the switch, will be able to do after a run with these settings."""
    switches = Switches(ledger.connection)
    row = switches.row()
    if ledger.old_table_lacks_writes() and switches.old_is_written():
        return WayBack("There is no way back: old writes had stopped before, so the old table lacks what came then.")
    if row and row.finished_at and switches.reads_are_new():
        if not switches.old_is_written():
            return WayBack("There is no way back: the old table is no longer written.")
        if not stop_old_writes:
            return WayBack(f"rollback_person_distinct_id2 can return reads {UNTIL_A_RUN}")
        until = row.finished_at + timedelta(seconds=read_cache_seconds)
        return WayBack(
            f"rollback_person_distinct_id2 can return reads until old writes stop, at {until:%Y-%m-%d %H:%M:%S %Z}, or "
            "later if the migration is paused then.",
            until,
        )
    before = "Once reads are switched there is no way back: "
    if not switches.has_settings:
        return WayBack(f"{before}this release of PostHog stops writing the old table then, by itself.")
    if not stop_old_writes:
        return WayBack(f"After the switch rollback_person_distinct_id2 can return reads {UNTIL_A_RUN}")
    if not read_cache_seconds:
        return WayBack(f"{before}old writes stop at once, because read_cache_seconds is 0.")
    return WayBack(
        f"After the switch rollback_person_distinct_id2 can return reads for {read_cache_seconds:,.0f} s "
        "(read_cache_seconds). Then old writes stop, and there is no way back."
    )
