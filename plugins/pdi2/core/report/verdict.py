"""The first line of the page: which table is read, what cannot be undone and from when, and what to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pdi2.core.state.switches import Status
from pdi2.core.state.words import counted

OLD = "Readers use the old table, and nothing is lost."


@dataclass(frozen=True)
class Verdict:
    """`tone` is good, warn or bad. If there is a time `until`, the page shows `text`, it and `after` as one sentence.

    `topic` is the first cell of the row in docs/runbook.md that says more.
    """

    tone: str
    text: str
    do: str
    topic: str
    until: datetime | None = None
    after: str = ""


def verdict(
    switch: Mapping[str, Any], run: Mapping[str, Any] | None, now: str | None, alive: bool, airflow: Mapping[str, Any]
) -> Verdict:
    """`now` is the run's step. For `switch` see watching.status, for `airflow` that and edge.page.status."""
    new = switch["status"] == Status.COMPLETED_SUCCESSFULLY.name
    if switch["reads"] and (switch["reads"] == "new") != new:
        return Verdict(
            "bad",
            f"PostHog's switches disagree: the migration row says the {'new' if new else 'old'} table, the setting "
            f"PERSON_DISTINCT_ID_READS the {switch['reads']} one.",
            "Find out who changed one of them, and set it back; the migration changes both at once.",
            "The switches disagree",
        )
    if new and switch["writes"] == "old":
        return Verdict(
            "bad",
            "Readers use the new table, but PostHog writes only the old one: the setting PERSON_DISTINCT_ID_WRITES is "
            '"old".',
            'Set it to "both", or to "new" if old writes had stopped before, and find out who changed it. Then trigger '
            'audit_person_distinct_id2 with {"repair": true}: it writes what the new table missed.',
            "The new table lacks writes",
        )
    if new and switch["wrong"]:
        way_back = {
            "both": " Both tables are written, so a rollback is possible.",
            "new": " Old writes have stopped, so a rollback is not possible.",
        }.get("new" if switch["old_lacks_writes"] else switch["writes"], "")
        return Verdict(
            "bad",
            f"Readers use the new table, and it answers {counted(switch['wrong'], 'id')} wrongly.{way_back}",
            "Find out which writer or consumer of person_distinct_id2 loses rows, then trigger "
            'audit_person_distinct_id2 with {"repair": true}: it writes what Postgres says. The findings name the ids.',
            "The new table answers wrongly",
        )
    if switch["found_right"]:
        return Verdict(
            "good",
            "Readers use the new table. Somebody else switched them to it (PostHog's own runner, or an administrator), "
            "and the audit that began at",
            "Nothing. Keep the audit scheduled.",
            "Somebody else switched reads, and an audit found no drift",
            until=switch["found_right"],
            after=" compared every team with Postgres: no id is wrong.",
        )
    if switch["by_somebody_else"]:
        return Verdict(
            "bad",
            "Readers use the new table, unverified: somebody else completed PostHog's migration row (PostHog's own "
            "runner, or an administrator).",
            "Trigger audit_person_distinct_id2: it compares every team with Postgres. If it finds no drift, all is "
            'well; if it does, trigger it with {"repair": true}.',
            "Somebody else switched reads",
        )
    if new:
        return _after_the_switch(switch, run, alive, airflow)
    completed = run is not None and run["outcome"] == "completed"
    if switch["writes"] == "new" or switch["old_lacks_writes"] or (switch["writes"] is None and completed):
        return Verdict(
            "bad",
            "Readers use the old table, which lacks what came while PostHog wrote only the new one.",
            "Find out who changed PostHog's switches. If the migration was complete, set its row (and "
            "PERSON_DISTINCT_ID_READS) back: the new table has everything. If it never was, set "
            'PERSON_DISTINCT_ID_WRITES to "both".',
            "The old table lacks writes",
        )
    if run and (completed or run["outcome"] == "rolled back"):  # completed: somebody else returned reads since
        return Verdict(
            "warn",
            f"Safe: rolled back. {OLD}" + (" Both tables are written." if switch["writes"] == "both" else ""),
            "Restart PostHog's processes now: those that saw the migration complete go on reading the new table until "
            "they are restarted.",
            "Rolled back",
        )
    if another := airflow.get("another"):
        return Verdict(
            "good",
            f"Safe: {OLD} {another}",
            "Open the page Migration: it says how the migration stands.",
            "The tab of another run",
        )
    followed = airflow.get("unknown") and airflow.get("newer")  # somebody triggered another run, as the page says
    if run and run["outcome"] is None and alive and not followed:
        return _running(switch, run, now, airflow)
    return _not_running(run, airflow)


def _after_the_switch(
    switch: Mapping[str, Any], run: Mapping[str, Any] | None, alive: bool, airflow: Mapping[str, Any]
) -> Verdict:
    text = "Readers use the new table."
    if switch["writes"] is None:
        return Verdict(
            "good",
            f"{text} The switch is irreversible. Each PostHog process ends its old writes when it is restarted.",
            "Restart them. Keep the audit scheduled, and the old table: PostHog deletes with its help.",
            "Old writes end by a restart",
        )
    if switch["writes"] != "both" or switch["old_lacks_writes"]:
        return Verdict(
            "good",
            f"{text} Old writes have stopped: this is irreversible, and a rollback is no longer possible.",
            "Nothing. Keep the audit scheduled, and the old table: PostHog deletes with its help.",
            "Old writes have stopped",
        )
    settings = (run or {}).get("settings") or {}
    until = airflow.get("old_writes_end")
    if alive and settings.get("stop_old_writes") and switch["finished_at"]:
        until = switch["finished_at"] + timedelta(seconds=settings["read_cache_seconds"])
    if until and airflow.get("paused"):
        return Verdict(
            "warn",
            f"{text} Somebody paused the migration, so old writes go on and a rollback is possible.",
            "Resume it when the time is right: old writes then stop, which is irreversible. Or roll back before that.",
            "Paused",
        )
    if until and airflow.get("dag_is_paused"):
        return _dag_is_paused(f"{text} Both tables are written, so a rollback is possible.")
    if until and (reason := airflow.get("old_writes_wait")):
        return Verdict(
            "bad",
            f"{text} Old writes wait, and a rollback is possible.",
            f"{reason} Or roll back.",
            "Old writes wait",
        )
    if until:
        due = until <= airflow["clock"]  # a task may wait for its next try, or somebody may have killed the run
        return Verdict(
            "warn",
            f"{text} Old writes {'may stop at any moment; they were due at' if due else 'stop at'}",
            f"Watch PostHog. If anything is wrong, roll back {'now' if due else 'before then'}.",
            "Reads are switched, both tables are written",
            until=until,
            after=f": until {'they stop' if due else 'then'} a rollback is possible; after that it is irreversible.",
        )
    return Verdict(
        "good",
        f"{text} Both tables are written, so a rollback is possible and nothing is irreversible.",
        "When you trust the new table, trigger the migration with stop_old_writes on: it ends the old writes.",
        "Reads are switched, both tables are written",
    )


def _running(switch: Mapping[str, Any], run: Mapping[str, Any], now: str | None, airflow: Mapping[str, Any]) -> Verdict:
    settings = run["settings"]
    if settings.get("team_ids"):
        after = "This is a trial: it never switches reads."
    elif switch["writes"] is None:
        after = "The switch is irreversible: this release of PostHog stops writing the old table then, by itself."
    elif settings.get("stop_old_writes"):
        wait = settings["read_cache_seconds"]
        after = f"Nothing is irreversible before old writes stop, {wait:,} s after the switch."
    else:
        after = "Nothing is irreversible: this run leaves both tables written."
    text = f"Safe: {OLD} {after}"
    if airflow.get("unknown"):
        return Verdict(
            "warn",
            f"{text} This Airflow does not know the run: it was deleted, or another Airflow runs it.",
            "If no other Airflow runs it, trigger the DAG: it goes on from the last checkpoint.",
            "This Airflow does not know the run",
        )
    if airflow.get("dag_is_paused"):
        return _dag_is_paused(text)
    if engine := airflow.get("unanswered"):
        return Verdict(
            "bad",
            f"Safe, but nothing moves: {OLD} {engine} does not answer.",
            f"Bring {engine} back. Airflow tries again by itself, and each copy goes on from its last slice. If it is "
            "back already, the next try finds it: when that is due is below.",
            "An engine does not answer",
        )
    if now == "team.copy" and "pool" in airflow and airflow["pool"] is None:
        return Verdict(
            "bad",
            f"Safe, but nothing moves: {OLD} Airflow has no pool pdi2_copies, so no copy begins.",
            "Create it under Admin, Pools, or with: airflow pools set pdi2_copies 2 copies",
            "The pool of the copies does not exist",
        )
    if away := airflow.get("scheduler_away_since"):
        return _scheduler_is_away(text, away)
    if still := airflow.get("still"):
        return _still(text, still)
    if airflow.get("failed"):
        return Verdict(
            "warn",
            f"{text} But something failed for good, so this run will fail.",
            "Remove the cause below. The run goes on with the rest and then fails; then trigger the DAG again: it does "
            "only what is missing.",
            "Something failed, the rest goes on",
        )
    if airflow.get("retrying"):
        return Verdict(
            "warn",
            text,
            "Nothing yet: Airflow tries again by itself. Below is why.",
            "Tasks are up for retry",
        )
    if airflow.get("paused"):
        return Verdict("warn", text, "Somebody paused the migration: resume it when the time is right.", "Paused")
    if airflow.get("asked"):
        return Verdict("warn", text, "Approve the switch, or reject it.", "Waiting for approval")
    if airflow.get("waits"):
        return Verdict("warn", text, "Below is what it waits for, and whether you must act.", "It waits")
    if since := airflow.get("quiet_since"):
        return Verdict(
            "warn",
            f"{text} But no row has been copied and no team verified since",
            "One large team may take that long. If ClickHouse has not answered, the log of a task that runs says so.",
            "Nothing was copied or verified for a minute",
            until=since,
            after=".",
        )
    return Verdict("good", text, "Nothing.", "Running")


def _dag_is_paused(text: str) -> Verdict:
    return Verdict(
        "warn",
        f"{text} But the DAG is paused in Airflow: no task begins.",
        "Unpause fill_person_distinct_id2 in Airflow, when the time is right: the run goes on by itself.",
        "The DAG is paused in Airflow",
    )


def _scheduler_is_away(text: str, since: datetime) -> Verdict:
    return Verdict(
        "bad",
        f"{text} But Airflow's scheduler has given no sign of life since",
        "Start it again: the run then goes on by itself.",
        "Airflow begins no task",
        until=since,
        after=": no task begins, or is tried again.",
    )


def _still(text: str, still: Mapping[str, Any]) -> Verdict:
    return Verdict(
        "warn",
        f"{text} But nothing moves: no task has begun or ended since",
        "Check that Airflow's scheduler and workers are up, and that its pools have free slots (Admin, Pools).",
        "Airflow begins no task",
        until=still["since"],
        after=f", and none runs; {still['scheduled']:,} scheduled, {still['queued']:,} queued.",
    )


def _not_running(run: Mapping[str, Any] | None, airflow: Mapping[str, Any]) -> Verdict:
    """`newer` is the migration run that came after `run` and has changed nothing, in the words of edge.page."""
    newer = airflow.get("newer")
    nothing = "Safe: readers use the old table, and the migration has changed nothing."
    if newer:
        text = f"Safe: {OLD} What earlier runs finished is kept." if run else nothing
        if newer["state"] in ("queued", "running"):
            if airflow.get("dag_is_paused"):
                return _dag_is_paused(text)
            if away := airflow.get("scheduler_away_since"):
                return _scheduler_is_away(text, away)
            if still := airflow.get("still"):
                return _still(text, still)
            return Verdict("good", text, "Nothing yet; a run is checking.", "A run is checking")
        if newer.get("problems"):
            return Verdict(
                "bad", text, "Remove what is listed below, then trigger the DAG again.", "A run could not begin"
            )
        if newer["state"] == "failed":
            return Verdict(
                "bad",
                text,
                "Open the run below: its failed task's log says why. Remove that, then trigger the DAG again.",
                "A run could not begin",
            )
        if newer.get("plan") and run is None:
            trial = "Trigger the DAG with a team or two in team_ids: a trial, which never switches."
            return Verdict("good", text, trial, "A dry run has planned")
    if run is None:
        return Verdict(
            "good",
            nothing,
            "Trigger the DAG with dry_run: it checks and plans, and writes nothing.",
            "No migration has run",
        )
    if run["outcome"] == "trial passed":
        return Verdict("good", f"Safe: {OLD}", "Trigger the DAG without team_ids to migrate all teams.", "Trial passed")
    if run["outcome"] == "rejected":
        return Verdict("good", f"Safe: {OLD}", "A new run asks for approval again.", "The switch was rejected")
    return Verdict(
        "bad",
        f"Safe: {OLD} The run stopped; what is finished is kept.",
        "Remove the cause below, then trigger the DAG again: it does only what is missing.",
        "The run failed",
    )
