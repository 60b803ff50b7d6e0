"""Puts the audit log into sentences, and the cause of a failure into a few words."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pdi2.core.state.words import are, counted

MILESTONES = [
    "run_started",
    "dual_writes_enabled",
    "dual_writes_proven",
    "planned",
    "certified",
    "switch_approved",
    "switch_rejected",
    "reads_switched",
    "old_writes_stopped",
    "rolled_back",
]
TOLD_BY_DEFAULT = [
    *MILESTONES,
    "dual_writes_missed",
    "links_missed",
    "switch_put_off",
    "old_writes_put_off",
    "task_failed",
    "not_marked_errored",
    "paused",
    "resumed",
    "approval_asked",
    "report",
    "audit_planned",
    "no_drift",
    "drift_found",
]
CAUSE = re.compile(r"ClickHouse error \d+ \(\w+\)|(ClickHouse|Postgres) does not answer")
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
"""An id as `words.quoted` writes it; it may read like a cause."""


def known_cause(error: str) -> re.Match[str] | None:
    """The words for a cause, with the engine that does not answer, if one does not."""
    return CAUSE.search(QUOTED.sub("", error))


def cause(error: str) -> str:
    """ClickHouse's name for the error, or its first line without numbers: the same cause always reads the same."""
    if found := known_cause(error):
        return found.group()
    return re.sub(r"\b\d+(?:[,.]\d+)*", "N", error.split("\n")[0])[:200]


def sentence(what: str, detail: Mapping[str, Any]) -> tuple[str, datetime | None]:
    """An event of the ledger as a sentence, and the time that the sentence ends with, if it does."""
    tell = SENTENCES.get(what)
    try:
        text = tell(detail) if tell else ""
    except (KeyError, TypeError, ValueError):  # the event was written by hand or by an earlier release
        text = ""
    text = text or f"{what.replace('_', ' ').capitalize()}."
    until = detail.get("until")
    if what == "dual_writes_watched" and isinstance(until, int | float):
        return text, datetime.fromtimestamp(until, UTC)
    return text, None


def row(found: Mapping[str, Any] | None) -> str:
    """What a table or Postgres says about an id."""
    if not found:
        return "no row"
    who = "deleted" if found.get("is_deleted") else f"person {found.get('person_id')}"
    return who if found.get("version") is None else f"{who}, version {found['version']}"


def setting(value: Any) -> str:
    """A parameter's value as the form shows it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def by_kind(findings: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """How many findings of each kind are repaired, and how many are open."""
    return {
        kind.replace("_", " "): f"{count['repaired']:,} repaired, {count['remaining']:,} open"
        for kind, count in findings.items()
    }


def _planned(detail: Mapping[str, Any]) -> str:
    before = detail["verified_before"]
    more = f" {counted(before, 'team was', 'teams were')} verified already." if before else ""
    return f"Planned {counted(detail['teams'], 'team')} with {counted(detail['rows'], 'row')}.{more}"


def _proven(detail: Mapping[str, Any]) -> str:
    if not detail["links"]:
        return "Nobody wrote anything while dual writes were watched; verify compares every team with Postgres."
    links, one_of = counted(detail["links"], "link"), detail.get("one_of", 1)
    looked_at = f" One id in {one_of:,} was looked at." if one_of > 1 else ""
    return f"Dual writes are proven: {links} in {detail['seconds']:.0f} s reached both tables.{looked_at}"


def _certified(detail: Mapping[str, Any]) -> str:
    trial = " This was a trial." if detail.get("trial") else ""
    found = "; ".join(f"{kind}: {counts}" for kind, counts in by_kind(detail["findings"]).items())
    findings = f"Findings: {found}." if found else "No findings."
    return (
        f"Certified: {counted(detail['teams'], 'team')} verified, {counted(detail['rows_copied'], 'row')} copied, one "
        f"per id. {findings}{trial}"
    )


def _audited(detail: Mapping[str, Any]) -> str:
    wrong = detail.get("old_differs")
    more = "" if wrong is None else f" The old table's reader is wrong for {counted(wrong, 'id')}."
    return f"An audit compared {counted(len(detail['team_ids']), 'team')} with Postgres.{more}"


def _report(detail: Mapping[str, Any]) -> str:
    return (
        f"The run ended: {detail['outcome']}. {detail['verified']:,} of {counted(detail['teams'], 'team')} verified, "
        f"{counted(detail['rows_copied'], 'row')} copied in {counted(detail['slices'], 'slice')}."
    )


def _switched(detail: Mapping[str, Any]) -> str:
    again = sum((detail.get("rechecked") or {}).values())
    more = f" Just before, {counted(again, 'finding was', 'findings were')} repaired." if again else ""
    return f"Reads were switched to the new table.{more}"


SENTENCES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "dual_writes_enabled": lambda detail: "Dual writes were turned on: PostHog writes both tables.",
    "run_started": lambda detail: "The run started" + (" as a trial." if detail["settings"]["team_ids"] else "."),
    "dual_writes_watched": lambda detail: f"{detail['message']} Watching goes on until",
    "dual_writes_proven": _proven,
    "lag_measured": lambda detail: (
        f"Postgres's newest id had {'not ' if detail['waiting'] else ''}reached both tables after "
        f"{detail['seconds']:.0f} s."
    ),
    "dual_writes_missed": lambda detail: (
        f"Dual writes failed: {counted(detail['misses'], 'link')} reached the old table alone: {detail['examples']}."
    ),
    "planned": _planned,
    "teams_left_out": lambda detail: (
        f"Not copied, because Postgres no longer knows them: {counted(len(detail['team_ids']), 'team')}. The new table "
        "shows nothing of them."
    ),
    "copy_waits": lambda detail: f"The copy of team {detail['team_id']} waits for the server: {detail['reason']}.",
    "copy_put_off": lambda detail: f"The copy of team {detail['team_id']} was put off: {detail['reason']}.",
    "copy_goes_on": lambda detail: (
        f"The copy of team {detail['team_id']} goes on after {detail['waited_seconds']:.0f} s."
    ),
    "task_failed": lambda detail: f"A try of the task {detail['task']} failed: {detail['error']}",
    "read_times": lambda detail: (
        f"Reads were measured on team {detail['team_id']}: {detail['read_old'] * 1000:.0f} ms from the old table, "
        f"{detail['read_new'] * 1000:.0f} ms from the new one."
    ),
    "certified": _certified,
    "approval_asked": lambda detail: "Approval of the switch was asked for.",
    "switch_approved": lambda detail: f"{detail['by']} approved the switch.",
    "switch_rejected": lambda detail: f"{detail['by']} rejected the switch.",
    "switch_waits": lambda detail: f"The switch waits: {detail['reason']}",
    "switch_waited": lambda detail: "The switch no longer waits for replicas.",
    "switch_put_off": lambda detail: (
        f"The switch was put off: {detail['reason']}" if detail["reason"] else "The switch is no longer put off."
    ),
    "links_missed": lambda detail: f"{detail['found']}: the dual write no longer works.",
    "old_writes_put_off": lambda detail: detail["reason"] or "The end of old writes is no longer put off.",
    "mutation_seen": lambda detail: f"Somebody changed person_distinct_id2 by a mutation: {detail['command']}.",
    "rows_removed": lambda detail: "Somebody dropped or detached a part of person_distinct_id2.",
    "reads_switched": _switched,
    "old_writes_stopped": lambda detail: (
        "Each PostHog process ends its old writes when it is restarted. A rollback is not possible."
        if detail.get("by_the_application")
        else "Old writes were stopped. A rollback is no longer possible."
    ),
    "switch_committed": lambda detail: "The switch of reads is committed: whoever looks now finds it.",
    "rolled_back": lambda detail: "Reads were returned to the old table.",
    "report": _report,
    "certificate_written": lambda detail: f"The certificate was written to {detail['place']}.",
    "marked_errored": lambda detail: "PostHog's migration row was marked Errored, with the reason.",
    "not_marked_errored": lambda detail: f"PostHog's migration row was left alone: {detail['reason']}",
    "paused": lambda detail: "The migration was paused.",
    "resumed": lambda detail: "The migration was resumed.",
    "audit_planned": lambda detail: (
        f"An audit of {counted(len(detail['team_ids']), 'team')} began"
        + (", with repair." if detail["repair"] else ".")
    ),
    "audited": _audited,
    "no_drift": lambda detail: (
        f"An audit ended: {counted(detail['teams'], 'team')} compared, and no id is wrong."
        if detail["teams"]
        else "An audit ended: there was no team to compare."
    ),
    "drift_found": lambda detail: (
        f"An audit ended: {counted(detail['teams'], 'team')} compared, and {counted(detail['ids'], 'id')} "
        f"{are(detail['ids'])} wrong."
    ),
}
