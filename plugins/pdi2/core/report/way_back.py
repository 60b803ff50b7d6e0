"""Until when reads can be returned to the old table, which people must know before they approve the switch."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from pdi2.core.state.switches import Switches

UNTIL_A_RUN = "for as long as both tables are written: until a run with stop_old_writes on."


@dataclass(frozen=True)
class WayBack:
    """Whether a rollback is `possible`, `until` when if that is known, and a `text` that says both.

    Before the switch, this is what will hold after it.
    """

    possible: bool
    until: datetime | None
    text: str


def way_back(switches: Switches, stop_old_writes: bool, read_cache_seconds: float) -> WayBack:
    """What a rollback can do now or, before the switch, will be able to do after a run with these settings."""
    row = switches.row()
    if row and row.finished_at and switches.reads_are_new():
        if not switches.old_is_written():
            return _none("There is no way back any more: the old table is no longer written.")
        if not stop_old_writes:
            return WayBack(True, None, f"rollback_person_distinct_id2 can return reads {UNTIL_A_RUN}")
        until = row.finished_at + timedelta(seconds=read_cache_seconds)
        text = (
            f"rollback_person_distinct_id2 can return reads until old writes stop, at {until:%Y-%m-%d %H:%M:%S %Z}, or "
            "later where the migration is paused then."
        )
        return WayBack(True, until, text)
    before = "Once reads are switched there is no way back: "
    if not switches.has_settings:
        return _none(f"{before}this release of PostHog stops writing the old table then, by itself.")
    if not stop_old_writes:
        return WayBack(True, None, f"After the switch rollback_person_distinct_id2 can return reads {UNTIL_A_RUN}")
    if not read_cache_seconds:
        return _none(f"{before}old writes stop at once, because read_cache_seconds is 0.")
    text = (
        f"After the switch rollback_person_distinct_id2 can return reads for {read_cache_seconds:,.0f} s "
        "(read_cache_seconds). Then old writes stop, and there is no way back."
    )
    return WayBack(True, None, text)


def _none(text: str) -> WayBack:
    return WayBack(False, None, text)
