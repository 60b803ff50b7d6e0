"""How far a run is, how fast it goes and how long it will take, from the ledger alone."""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row

from pdi2.core.engines import postgres
from pdi2.core.state.switches import COPY_SHARE

RECENT_SECONDS = 300
"""The speed shown is the average over this time."""
WINDOW_SECONDS = 5
"""The peak is the highest of any such window, however wide the chart's bars are."""
MOST_BARS = 60
FEW_TEAMS = 5
SMALL_TEAM_SECONDS = RECENT_SECONDS / FEW_TEAMS
"""Of teams that take less, the last minutes soon show what one takes without rows: watch_work.sql needs six."""
KINDS = {"copied": COPY_SHARE, "verified": 1 - COPY_SHARE}
"""The kinds of work on a row, and each one's share of the time that both take."""


def figures(
    connection: Connection[Any],
    run: Mapping[str, Any],
    now: datetime,
    planned_at: datetime | None,
    cleared_at: datetime | None,
    alive: bool,
    paused: bool,
) -> dict[str, Any]:
    """Rows by kind of work, the share of all work that is done (None before the plan), speeds in rows per second.

    `seconds_left` is None until this run has done some of both kinds of work, or nothing is left of one kind, and
    while the migration is paused. It goes by the clock since the plan, so it includes the time that Airflow takes to
    start tasks, and it is no less than as many teams would take without rows. While many small teams are left and
    nobody knows that, it is None. Of a run whose tasks were cleared, it goes by what was done since. Once a run has
    ended, its figures no longer change, and its speeds are averages over its whole time.
    """
    begun = max(filter(None, (planned_at, cleared_at)), default=None)
    recent = min(RECENT_SECONDS, (now - begun).total_seconds()) if begun else RECENT_SECONDS
    since = {"since": run["started_at"]}
    parameters = {"team_ids": run["settings"].get("team_ids"), "copy_share": COPY_SHARE}
    totals = postgres.execute(connection, "watch_totals", parameters, dict_row).fetchall()
    work = {
        line["kind"]: line for line in postgres.execute(connection, "watch_work", {**since, "recent": recent}, dict_row)
    }
    verified = [line for line in totals if line["status"] == "verified"]
    rows = {
        "source": total(totals, "rows_source"),
        "copied": total(totals, "rows_done"),
        "verified": total(verified, "rows_source"),
    }
    whole = total(totals, "work")
    done = total(totals, "work_done")
    finished = whole == total(verified, "work")
    going_on = alive and planned_at is not None and not finished
    left = None
    if going_on and begun and not paused:
        left = _seconds_left(work, rows, whole - done, recent, now - begun if begun == planned_at else None)
        per_team, teams_left = work["verified"]["per_team"], total(totals, "teams") - total(verified, "teams")
        if left and per_team is not None:
            left = max(left, per_team * teams_left)
        elif left and teams_left > FEW_TEAMS and left < teams_left * SMALL_TEAM_SECONDS:
            left = None
    return {
        "teams": {line["status"]: line["teams"] for line in totals},
        "rows": rows,
        "share": (1.0 if finished else min(done / whole, 0.999)) if planned_at and whole else None,
        "speed": {kind: _speed(work[kind], now, recent if going_on else None) for kind in KINDS},
        "seconds_left": left,
        "last": {kind: work[kind]["ended"] for kind in KINDS},
        "copy": {
            "slices": total(totals, "slices"),
            "peak_memory": max((line["peak_memory"] or 0 for line in totals), default=0) or None,
            "old_differs": total(totals, "old_differs"),
        },
        "copied_at": max((line["copied_at"] for line in totals if line["copied_at"]), default=None),
        "verified_at": max((line["verified_at"] for line in totals if line["verified_at"]), default=None),
        "throughput": _throughput(connection, work, since, now if going_on else None),
    }


def total(lines: list[dict[str, Any]], key: str) -> Any:
    return sum(line[key] or 0 for line in lines)


def _seconds_left(
    work: Mapping[str, Mapping[str, Any]],
    rows: Mapping[str, int],
    left: float,
    recent_seconds: float,
    since_plan: timedelta | None,
) -> float | None:
    if any(not work[kind]["rows"] and rows[kind] < rows["source"] for kind in KINDS):
        return None
    recent, since = (sum(share * work[kind][fact] for kind, share in KINDS.items()) for fact in ("recent", "rows"))
    if recent:
        return float(left * recent_seconds / recent)
    if since and since_plan:  # one team may take longer than RECENT_SECONDS
        return float(left * since_plan.total_seconds() / since)
    return None


def _speed(work: Mapping[str, Any], now: datetime, recent_seconds: float | None) -> float | None:
    """Rows per second in the last minutes, or over the whole time once the run is over; None if nothing was done.

    The time counts as WINDOW_SECONDS at least, as for the peak.
    """
    if work["began"] is None:
        return None
    if recent_seconds is not None:
        return float(work["recent"] / max(WINDOW_SECONDS, min(recent_seconds, (now - work["began"]).total_seconds())))
    return float(work["rows"] / max(WINDOW_SECONDS, (work["ended"] - work["began"]).total_seconds()))


def _throughput(
    connection: Connection[Any],
    work: Mapping[str, Mapping[str, Any]],
    since: Mapping[str, datetime],
    now: datetime | None,
) -> dict[str, Any] | None:
    """By kind of work, the peak and the rows per second in bars of `width` seconds; None if nothing was done.

    The bars start at `began`, and end now while the run goes on, or else at the last row.
    """
    began = min((line["began"] for line in work.values() if line["began"]), default=None)
    if began is None:
        return None
    ended = now or max(line["ended"] for line in work.values() if line["ended"])
    windows = max(1, int((ended - began).total_seconds() / WINDOW_SECONDS) + 1)
    per_bucket = math.ceil(windows / MOST_BARS)
    parameters = {**since, "began": began, "window": WINDOW_SECONDS, "per_bucket": per_bucket}
    width = WINDOW_SECONDS * per_bucket
    found: dict[str, Any] = {kind: {"rows_per_second": [0.0] * math.ceil(windows / per_bucket)} for kind in KINDS}
    for line in postgres.execute(connection, "watch_throughput", parameters, dict_row):
        of_kind = found[line["kind"]]
        if line["bucket"] < len(of_kind["rows_per_second"]):
            of_kind["rows_per_second"][line["bucket"]] = line["rows"] / width
        of_kind["peak"] = max(of_kind.get("peak", 0), line["peak"])
    return {"began": began, "width": width, **found}
