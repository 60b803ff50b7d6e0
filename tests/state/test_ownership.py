"""Who may work: two runs, two tasks of one run, and two processes on one team."""

import psycopg
import pytest
from conftest import System
from pdi2.core.engines.failures import BusyError, Reaction, WaitError, reaction
from pdi2.core.state.ownership import NotOwnerError, alone_with, held_by, hold, try_lock
from stories import dump, enable, end_session


def test_the_next_run_takes_over_and_the_first_one_stops(system: System) -> None:
    first, owner = system.ledger(), system.ledger("the next run")
    enable(system, first)
    hold(first)
    before = dump(system)
    with pytest.raises(BusyError, match="is running.*Nothing was changed"):
        enable(system, owner)
    assert dump(system) == before
    end_session(system, first)
    enable(system, owner)
    hold(owner)
    before = dump(system)
    with pytest.raises(NotOwnerError, match='"a run" does.*run "the next run" of a test does.*nothing') as refused:
        hold(system.ledger("a run"))
    assert reaction(refused.value) is Reaction.FAIL
    assert dump(system) == before


def test_whoever_holds_a_lock_is_named(system: System) -> None:
    """Any session of that database can take them, and then no run may exist that could be waited for."""
    ledger = system.ledger()
    enable(system, ledger)
    with psycopg.connect(system.uri, application_name='a "stranger"', autocommit=True) as stranger:
        named = rf'held by process {stranger.info.backend_pid} of role postgres, connected since \d.*"a \\"stranger'
        stranger.execute("SELECT pg_advisory_lock(hashtext('pdi2_migration'), 0)")
        with pytest.raises(BusyError, match=f"is running.*{named}.*pg_terminate_backend"):
            enable(system, system.ledger("the next run"))
        with pytest.raises(NotOwnerError, match=f"is starting.*{named}"):
            hold(ledger)
        of_team = "SELECT pg_advisory_lock(hashtextextended('pdi2_migration team', %s))"
        for team_id in (2, -3):
            stranger.execute(of_team, [team_id])
            with pytest.raises(WaitError, match=f"works on team {team_id}.*{named}"), alone_with(ledger, [team_id]):
                pass
        assert held_by(ledger, 4) == ""


def test_a_run_that_never_claimed_the_migration_does_not_hold_it(system: System) -> None:
    ledger = system.ledger()
    ledger.create()
    with pytest.raises(NotOwnerError, match="no run does.*changed nothing"):
        hold(ledger)


def test_tasks_of_one_run_work_side_by_side(system: System) -> None:
    enable(system, system.ledger())
    tasks = [system.ledger(), system.ledger()]
    for task in tasks:
        hold(task)
    watcher = system.ledger()
    assert not try_lock(watcher)
    end_session(system, tasks[0])
    assert not try_lock(watcher)
    end_session(system, tasks[1])
    assert try_lock(watcher)


def test_one_process_at_a_time_works_on_a_team(system: System) -> None:
    one, other = system.ledger(), system.ledger()
    with alone_with(one, [1, 2]):
        with pytest.raises(WaitError, match="Another process works on team 2"), alone_with(other, [2, 3]):
            pass
        with alone_with(system.ledger(), [3]):
            pass
    with alone_with(other, [1, 2, 3]):
        end_session(system, other)
    with alone_with(one, [1, 2, 3]):
        pass
