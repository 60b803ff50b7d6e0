"""Who may work: one run owns the migration, and one process works on a team.

The newest row of `run` names the owner, and advisory locks of Postgres show who is running. Each task holds the
migration's lock, shared, while it runs, and a run that claims the migration must find it free. So two runs never work
at once, and a process that was killed leaves nothing to clean up.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from psycopg.types.json import Jsonb

from pdi2.core.engines import postgres
from pdi2.core.engines.failures import BusyError, MigrationError, WaitError
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings

AT_WORK = (
    "Another run of this migration is running (it holds the advisory lock). Nothing was changed. Airflow tries "
    "again; if it has given up, wait until the other run has ended, and trigger this one again."
)


def held_by(ledger: Ledger, team_id: int | None = None) -> str:
    """Who has the migration's lock, or the team's: any session of that database can take it. Empty if nobody has."""
    found = [one for (one,) in postgres.execute(ledger.connection, "lock_holders", {"team_id": team_id})]
    if not found:
        return ""
    return (
        f" The lock is held by {'; '.join(found)}. If that is not a task of a run, end its session in Postgres: "
        "SELECT pg_terminate_backend(process)."
    )


class NotOwnerError(MigrationError):
    """Another run is starting the migration, or has taken it over."""


def try_lock(ledger: Ledger) -> bool:
    """Takes the migration's lock until the transaction ends, so that no task can begin. False if a task is running."""
    return bool(postgres.value(ledger.connection, "lock_claim"))


def is_owner(ledger: Ledger) -> bool:
    current = ledger.current_run()
    return current is not None and current.airflow_run == ledger.airflow_run


def settings_of_run(ledger: Ledger) -> Settings | None:
    """What this run began with, if it owns the migration: a run's parameters never change."""
    current = ledger.current_run()
    return Settings.from_dict(current.settings) if current and is_owner(ledger) else None


def claim(ledger: Ledger, settings: Mapping[str, Any], alone: bool = True) -> None:
    """Makes this run the owner, within the caller's transaction. Raises BusyError if another run is running.

    With `alone=False` it goes on regardless. Use that only if the other run's tasks can do no harm.

    If the previous owner is between two tasks, its next task sees that it lost the migration, and stops.
    """
    current = ledger.current_run()
    if current and is_owner(ledger) and not current.ended_at:
        return
    if not try_lock(ledger) and alone:
        raise BusyError(AT_WORK + held_by(ledger))
    run = {"airflow_run": ledger.airflow_run, "actor": ledger.actor, "settings": Jsonb(dict(settings))}
    postgres.execute(ledger.connection, "run_claim", run)


def hold(ledger: Ledger) -> None:
    """Takes the shared lock until the connection closes. Raises NotOwnerError."""
    if not postgres.value(ledger.connection, "lock_try_shared"):
        raise NotOwnerError(
            "Another run of the migration is starting. Nothing was changed. "
            f"Wait until it has ended, then trigger this run again.{held_by(ledger)}"
        )
    refuse_unless_owner(ledger)


def refuse_unless_owner(ledger: Ledger) -> None:
    if not is_owner(ledger):
        current = ledger.current_run()
        owner = f'run "{current.airflow_run}" of {current.actor}' if current else "no run"
        raise NotOwnerError(
            f'Run "{ledger.airflow_run}" does not own the migration: {owner} does. This task changed nothing. '
            "Let the owner finish, or trigger a new run: it goes on from the last checkpoint."
        )


@contextmanager
def alone_with(ledger: Ledger, team_ids: Iterable[int]) -> Iterator[None]:
    """Keeps other processes from these teams. Raises WaitError if one works on any of them already.

    If Airflow loses sight of a task's process, a second try begins while the first one is still working.
    """
    found = postgres.execute(ledger.connection, "team_lock", {"team_ids": sorted(team_ids)}).fetchall()
    taken = [team_id for team_id, is_taken in found if is_taken]
    try:
        for team_id, is_taken in found:
            if not is_taken:
                raise WaitError(
                    f"Another process works on team {team_id}: an earlier try of this task, of which Airflow has "
                    "lost sight. This try changed nothing, and goes on by itself once that one has ended. If it "
                    f"does not end, end it on its worker, or its session in Postgres.{held_by(ledger, team_id)}"
                )
        yield
    finally:
        if taken and not ledger.connection.closed:  # not left to the end of the session, which comes a little later
            postgres.execute(ledger.connection, "team_unlock", {"team_ids": taken})
