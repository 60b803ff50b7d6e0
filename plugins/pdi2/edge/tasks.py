"""The tasks of the DAGs. Each opens its databases, calls the core, and logs the result."""

import logging
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from airflow.providers.common.compat.sdk import conf
from airflow.sdk import Asset, PokeReturnValue, get_current_context

from pdi2.core.cluster.ours import catch_up
from pdi2.core.copy.copying import copy_team, copy_together
from pdi2.core.copy.staging import forget_all
from pdi2.core.engines.failures import MigrationError, WaitError, describe, naming_failures, waits
from pdi2.core.plan import planning
from pdi2.core.plan import preflight as checks
from pdi2.core.plan.postgres_checks import ledger_problems
from pdi2.core.report.telling import sentence
from pdi2.core.report.way_back import way_back
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.ownership import is_owner, settings_of_run
from pdi2.core.state.settings import Settings, SettingsError
from pdi2.core.switch import dual_writes, gate, old_writes, payoff, proof, rollback
from pdi2.core.verify.verifying import verify_team, verify_together
from pdi2.edge import END, OLD_WRITES_END, POOL, SETTINGS, SWITCH, TEAM_LABEL, VERDICT, figures
from pdi2.edge.batches import each_team, logged
from pdi2.edge.compat import AirflowSkipException
from pdi2.edge.connections import (
    current_settings,
    open_ledger,
    open_warehouse,
    opened,
    put_off,
    reach,
    settings_of,
)
from pdi2.edge.other_tasks import left_by, tell, verdict
from pdi2.edge.retries import task

log = logging.getLogger(__name__)

FOLLOWED_BY = {
    checks.Verdict.MIGRATE: "enable_dual_writes",
    checks.Verdict.PLAN_ONLY: "plan_teams",
    checks.Verdict.STOP_OLD_WRITES: "stop_old_writes",
    checks.Verdict.NOTHING: END,
}
NEW_TABLE = Asset("person_distinct_id2")
"""Airflow's asset of the new table. It is updated only by the switch, with the certificate in the event."""
POOL_NEEDED = (
    f"The copies wait for slots of Airflow's pool {POOL}. If none begins, look at Admin, Pools: a task in a pool "
    "that does not exist is never scheduled, and Airflow does not say so. The plugin creates it as Airflow starts; by "
    f"hand: airflow pools set {POOL} 2 copies"
)
UNCHECKED = (
    "preflight has not found that this run may begin (a task that is marked by hand checks nothing). Nothing was "
    "changed. Clear the task preflight and what follows it, or trigger a new run."
)
SAME_NAME = (
    "The ledger knows an earlier run of this name, which Airflow has forgotten, with other parameters: this run would "
    "go on with those. Trigger it under another name."
)
LOOKING: dict[str, Any] = {"mode": "reschedule", "poke_interval": 5, "timeout": timedelta(days=7).total_seconds()}


@task.branch
def preflight() -> str:
    """Checks everything and changes nothing. If there is nothing to do, the run ends here, green."""
    found: list[str] = []
    try:
        settings = current_settings()
    except SettingsError as error:
        found, settings = error.problems, Settings()
    with ExitStack() as stack:
        try:
            ledger, warehouse = reach(found, stack)
            if ledger and (ours := ledger_problems(ledger.connection)):
                found, ledger = found + ours, None
            cleared = get_current_context()["dag_run"].clear_number
            if kept := ledger and settings_of_run(ledger):
                if not cleared and not found and kept != settings:
                    found.append(SAME_NAME)
                settings = kept
            if ledger and not settings.dry_run and not cleared:
                found += checks.decision_against(ledger, settings, _triggered_at())
            result = checks.check(ledger, warehouse, settings, found)
        except Exception as error:
            tell("problems", getattr(error, "problems", [describe(error)]))
            if waits(error):
                log.warning("preflight waits: %s", describe(error))
                raise put_off() from error
            raise
        log.info(result.message)
        if ledger and result.verdict is checks.Verdict.STOP_OLD_WRITES:
            tell(SWITCH, _switch(ledger))
        if ledger and result.verdict is not checks.Verdict.NOTHING:
            back = way_back(ledger, settings.stop_old_writes, settings.read_cache_seconds)
            log.info(back.text)
            if back.until:
                tell(OLD_WRITES_END, back.until.isoformat())
    tell("message", result.message)
    tell(SETTINGS, asdict(settings))
    # As an XCom of its own, because a branch that skips tasks leaves no return value.
    tell(VERDICT, str(result.verdict))
    return FOLLOWED_BY[result.verdict]


def _triggered_at() -> datetime | None:
    """When a person triggered this run; None if a schedule did."""
    run = get_current_context()["dag_run"]
    return run.run_after if run.run_type == "manual" else None


@task(multiple_outputs=False)
def enable_dual_writes() -> dict[str, Any]:
    """Makes the application write both tables, and sets the migration row to Starting."""
    with open_ledger() as ledger:
        settings = settings_of(ledger)
        if not settings.dry_run and verdict() != checks.Verdict.MIGRATE:
            raise MigrationError(UNCHECKED)
        with open_warehouse("enable_dual_writes", settings.max_memory_usage) as warehouse:
            dual_writes.enable(ledger, warehouse, settings)
        done = figures.of_dual_writes(ledger)
    log.info(
        "The application writes both tables as of %s (before that, its switch said: %s). PostHog's migration row says "
        "Starting.", done["since"], done["writes_before"],
    )  # fmt: skip
    return done


@task.sensor(**LOOKING)
def prove_dual_writes() -> PokeReturnValue:
    """Watches until every write of the settle time has reached both tables; frees its worker slot between looks."""
    with opened("prove_dual_writes") as bench:
        observation = proof.observe(bench.ledger, bench.warehouse, bench.settings)
    log.info(observation.message)
    return PokeReturnValue(is_done=observation.proven)


@task(trigger_rule="none_failed_min_one_success")
def plan_teams() -> list[dict[str, Any]]:
    """Freezes the list of teams in the ledger; one mapped task per batch of teams."""
    with open_ledger() as ledger:
        settings = settings_of(ledger)
        if settings.dry_run:
            with open_warehouse("plan_teams", settings.max_memory_usage) as warehouse:
                plan = planning.forecast(ledger, warehouse, settings)
            log.info(plan)
            tell("plan", plan)
            return []
    with opened("plan_teams") as bench:
        most = conf.getint("core", "max_map_length")
        batches = planning.freeze(bench.ledger, bench.warehouse, bench.settings, most)
        log.info(figures.of_plan(bench.ledger, [batch.team_ids for batch in batches]))
    log.info(POOL_NEEDED)
    return [{"team_ids": batch.team_ids, "label": batch.label} for batch in batches]


@task(map_index_template=TEAM_LABEL, pool=POOL, multiple_outputs=False)
def copy(batch: dict[str, Any]) -> dict[str, Any]:
    """Copies the batch's teams from their checkpoints. A team that fails does not stop the others."""
    if not batch["team_ids"]:
        raise AirflowSkipException("The teams of this task are verified, and the run's new plan leaves them out.")
    each_team(
        batch,
        "copy",
        lambda bench, team_ids: copy_together(bench.ledger, bench.warehouse, team_ids),
        lambda bench, team_id: copy_team(bench.ledger, bench.warehouse, team_id),
    )
    return logged(figures.of_copy, batch)


@task(map_index_template=TEAM_LABEL, trigger_rule="all_done", multiple_outputs=False)
def verify(batch: dict[str, Any]) -> dict[str, Any]:
    """Verifies the batch's copied teams against Postgres, and repairs the new table where it is wrong."""
    with open_ledger() as ledger:
        copied = ledger.ended(batch["team_ids"])
    if not copied:
        raise AirflowSkipException("No team of this batch is copied, so none can be verified. The copy task says why.")
    each_team(
        {**batch, "team_ids": [team_id for team_id in batch["team_ids"] if team_id in copied]},
        "verify",
        lambda bench, team_ids: verify_together(bench.ledger, bench.warehouse, team_ids, bench.settings),
        lambda bench, team_id: verify_team(bench.ledger, bench.warehouse, team_id, bench.settings),
    )
    return logged(figures.of_verification, batch)


@task.short_circuit(trigger_rule="none_failed", ignore_downstream_trigger_rules=True, multiple_outputs=False)
def certify() -> dict[str, Any] | None:
    """The gate: checks that the ledger has every team as verified. A trial or a dry run ends here, green."""
    with open_ledger() as ledger:
        if settings_of(ledger).dry_run:
            return None
    with opened("certify") as bench:
        forget_all(bench.warehouse)
        certified = gate.certify(bench.ledger, bench.warehouse, bench.settings)
        payoff.measure(bench.ledger, bench.warehouse)
    log.info(sentence("certified", certified)[0])
    return None if bench.settings.team_ids else certified


@task(outlets=[NEW_TABLE])
def switch_reads() -> None:
    """Switches reads to the new table, in one transaction with the gate. Waits while the migration is paused."""
    with opened("switch_reads") as bench:
        gate.switch_reads(bench.ledger, bench.warehouse, bench.settings)
        get_current_context()["outlet_events"][NEW_TABLE].extra = bench.ledger.latest("reads_switched") or {}


@task.sensor(**LOOKING, trigger_rule="none_failed_min_one_success")
def stop_old_writes() -> PokeReturnValue:
    """Waits until no reader can still use the old table, and then stops the writes to it."""
    with open_ledger() as ledger:
        settings = settings_of(ledger)
        if not settings.stop_old_writes:
            raise AirflowSkipException(
                "stop_old_writes is off: both tables stay written, and a rollback stays possible."
            )
        until = old_writes.old_writes_end(ledger, settings)
        if not is_owner(ledger) and left_by("preflight", SWITCH) != _switch(
            ledger
        ):  # cleared after another migration, or run alone
            raise MigrationError(UNCHECKED)
        if ledger.clock() < until:
            log.info("Readers may use the old table until %s; old writes go on.", until)
            return PokeReturnValue(is_done=False)
        try:
            with (
                naming_failures("stop_old_writes"),
                open_warehouse("stop_old_writes", settings.max_memory_usage) as warehouse,
            ):
                catch_up(warehouse)
                old_writes.stop_old_writes(ledger, warehouse, settings)
        except WaitError as wait:
            log.warning("%s", wait)
            raise put_off() from wait
    return PokeReturnValue(is_done=True)


@task
def roll_back() -> None:
    """Returns reads to the old table at once; refuses once old writes have stopped."""
    with open_ledger() as ledger:
        try:
            told = rollback.roll_back(ledger)
        except rollback.RollbackError as refusal:
            tell("problems", [str(refusal)])
            raise
    log.info(told)
    tell("message", told)


def _switch(ledger: Ledger) -> str:
    """Which switch of reads the newest one is: the time of it."""
    event = ledger.newest("reads_switched")
    return event.at.isoformat() if event else ""
