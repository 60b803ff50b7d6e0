"""The steps of a run: which are done, which is next, and what the run waits for."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pdi2.core.report.telling import sentence
from pdi2.core.state.ledger import REJECTED, TRIAL_PASSED

STEPS = {
    "enable_dual_writes": ("Dual writes on", "run_started", "Turning dual writes on"),
    "prove_dual_writes": ("Dual writes proven", "dual_writes_proven", "Proving that every write reaches both tables"),
    "plan_teams": ("Teams planned", "planned", "Planning the teams"),
    "team.copy": ("Teams copied", None, "Copying and verifying teams"),
    "team.verify": ("Teams verified", None, "Verifying teams against Postgres"),
    "certify": ("Certified", "certified", "Certifying that every team is verified"),
    "approve": ("Approved", "reads_switched", "Waiting for approval of the switch"),
    "switch_reads": ("Reads switched", "reads_switched", "Switching reads to the new table"),
    "stop_old_writes": (
        "Old writes stopped",
        "old_writes_stopped",
        "Reads are on the new table; old writes go on for now",
    ),
    "report": ("Reported", "report", "Reporting"),
}
"""By task: its title, the event that ends it, and what a run is doing until then."""


@dataclass(frozen=True)
class Step:
    """One step. Its state is done, now, waiting (for its turn), skipped, rejected or stopped."""

    task: str
    title: str
    state: str
    at: datetime | None


@dataclass(frozen=True)
class Wait:
    """What the run waits for, `until` when if that is known. `about` names what can be done about it."""

    about: str
    text: str
    until: datetime | None = None


def steps(
    run: Mapping[str, Any], happened: Mapping[str, Any], figures: Mapping[str, Any] | None, alive: bool
) -> list[Step]:
    """The steps of a run; none for a rollback, which has no settings. `figures` is None if a newer run exists."""
    settings = run["settings"]
    if not settings:
        return []
    done: dict[str, datetime | None] = {
        task: happened[event]["at"] for task, (_, event, _) in STEPS.items() if event and event in happened
    }
    if "switch_approved" in happened:
        done["approve"] = happened["switch_approved"]["at"]
    if "planned" in happened and figures and figures["teams"].keys() <= {"copied", "verified"}:
        done["team.copy"] = figures["copied_at"]
    if "planned" in happened and figures and figures["teams"].keys() <= {"verified"}:
        done["team.verify"] = figures["verified_at"]
    if "certified" in happened and not _failed_again(happened, figures):
        done = {"team.copy": None, "team.verify": None, **done}
    skipped = {"approve"} if not settings.get("require_approval") else set()
    if settings.get("team_ids"):
        skipped |= {"approve", "switch_reads", "stop_old_writes"}
    elif not settings.get("stop_old_writes"):
        skipped |= {"stop_old_writes"}
    left = [task for task in STEPS if task not in done and task not in skipped]
    now = left[:2] if left[:1] == ["team.copy"] else left[:1]

    def state(task: str) -> str:
        if task in skipped:
            return "skipped"
        if task in done:
            return "done"
        if task == "approve" and run["outcome"] == REJECTED:
            return "rejected"
        if not alive:
            return "stopped"
        return "now" if task in now else "waiting"

    return [
        Step(task, title, state(task), None if task in skipped else done.get(task))
        for task, (title, _, _) in STEPS.items()
    ]


def _failed_again(happened: Mapping[str, Any], figures: Mapping[str, Any] | None) -> bool:
    """Whether somebody cleared a task of a team after the certificate, and it failed."""
    failed = happened.get("task_failed")
    return bool(
        failed
        and failed["at"] > happened["certified"]["at"]
        and failed["detail"]["task"].startswith("team.")
        and figures
        and "failed" in figures["teams"]
    )


def current(found: list[Step]) -> str | None:
    return next((step.task for step in found if step.state == "now"), None)


def phase(run: Mapping[str, Any], found: list[Step], alive: bool, reads_are_new: bool) -> str:
    """Where the run is, in one line."""
    if not alive and not run["ended_at"]:
        return "Stopped without a report: reads are on the " + ("new table" if reads_are_new else "old table")
    if run["ended_at"]:
        ended = {
            "completed": "Complete: reads are on the new table",
            TRIAL_PASSED: "The trial passed: reads stay on the old table",
            REJECTED: "The switch was rejected: reads stay on the old table",
            "rolled back": "Rolled back: reads are on the old table",
        }.get(run["outcome"], "Failed: reads stay on the old table")
        if run["newest"] and reads_are_new != (run["outcome"] == "completed"):  # somebody else changed it
            return f"{ended.partition(':')[0]}: reads are on the {'new' if reads_are_new else 'old'} table"
        return ended
    *_, doing = STEPS[current(found) or "report"]
    return doing


def waits(
    run: Mapping[str, Any],
    doing: str | None,
    happened: Mapping[str, Any],
    copies: list[dict[str, Any]],
    switched_at: datetime | None,
    now: datetime,
) -> list[Wait]:
    """What the step `doing` waits for. `copies` are the copies that wait for the server.

    `switched_at` is None if no wait ends old writes, because each process ends its own when it is restarted.
    """
    if doing == "prove_dual_writes" and "dual_writes_watched" in happened:
        watched = happened["dual_writes_watched"]["detail"]
        about = "misses" if watched.get("why") else "dual_writes"
        return [Wait(about, watched["message"], datetime.fromtimestamp(watched["until"], UTC))]
    if doing in ("team.copy", "team.verify"):
        return [Wait("server", f"The copy of team {copy['team_id']} waits: {copy['reason']}") for copy in copies]
    if doing == "approve":
        asked = happened.get("approval_asked")  # recorded once Airflow has the form
        if not asked or asked["at"] < happened["certified"]["at"]:
            return [Wait("form", "Airflow is about to ask for the approval of the switch.")]
        return [Wait("approval", "Somebody must approve or reject the switch in Airflow.")]
    if doing == "switch_reads":
        told = [happened[what] for what in ("switch_waits", "switch_put_off", "switch_waited") if what in happened]
        last = max(told, key=lambda event: event["at"], default=None)
        if last and last["what"] != "switch_waited" and last["detail"].get("reason"):
            return [Wait("server", sentence(last["what"], last["detail"])[0])]
    held = happened.get("old_writes_put_off", {}).get("detail", {}).get("reason")
    if doing == "stop_old_writes" and switched_at and not held:  # why they are held, the first line says
        until = switched_at + timedelta(seconds=run["settings"]["read_cache_seconds"])
        if until < now:  # it waits for Airflow to begin its task
            return []
        return [Wait("readers", "A reader may still use the old table, from its cache.", until)]
    return []
