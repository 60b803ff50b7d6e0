"""A paused migration: what is running ends with its slice, nothing else begins, and nothing is lost or repeated."""

from typing import Any

import pytest
from conftest import System
from pdi2.core.cluster import pressure
from pdi2.core.copy.copying import copy_team
from pdi2.core.engines.failures import WaitError
from pdi2.core.state.ledger import Ledger
from pdi2.edge import batches, connections
from pdi2.edge.retries import RETRIES
from stories import TEAM, a_range_a_slice, enable, many_ids, plan, when_recorded

from demo.seed import seed


def slices(system: System) -> list[tuple[Any, ...]]:
    query = "SELECT team_id, lower, finished_at FROM pdi2_migration.slice ORDER BY team_id, lower"
    return system.postgres.execute(query).fetchall()


def pause_after_the_first_slice(system: System) -> None:
    """Somebody pauses the migration at the very moment when the first slice is finished."""
    once = "WHERE NOT EXISTS (SELECT FROM pdi2_migration.event WHERE what = 'paused')"
    pause = f"INSERT INTO pdi2_migration.event (actor, what) SELECT 'ann', 'paused' {once}"
    when_recorded(system, "slice", "true", pause)


@pytest.mark.slow
def test_a_copy_stops_after_its_slice_and_goes_on_from_there(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "WAIT_IN_SLOT_SECONDS", 0)
    monkeypatch.setattr(pressure, "LOOK_EVERY_SECONDS", 0.01)
    a_range_a_slice(monkeypatch)
    ledger = system.ledger()
    many_ids(system, 5_000)
    enable(system, ledger)
    plan(system, ledger)
    ledger.remember_range_rows(TEAM, 1_000)
    pause_after_the_first_slice(system)

    with pytest.raises(
        WaitError, match=f"The work on team {TEAM} waits: ann paused .* goes on by itself once somebody resumes"
    ):
        copy_team(ledger, system.warehouse(), TEAM)
    done = slices(system)
    with pytest.raises(WaitError):
        copy_team(ledger, system.warehouse(), TEAM)
    assert slices(system) == done
    assert len(done) == 1

    ledger.record("resumed")
    copy_team(ledger, system.warehouse(), TEAM)

    assert slices(system)[:1] == done
    assert ledger.team(TEAM).status == "copied"
    assert system.clickhouse.query("SELECT uniqExact(distinct_id) FROM person_distinct_id2").result_rows == [(5_000,)]


@pytest.mark.slow
@pytest.mark.usefixtures("airflow_metadata")
def test_a_paused_run_burns_no_try_and_ends_after_it_is_resumed(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded = seed(system.postgres, system.clickhouse, rows=7_000, teams=1)
    ledger = system.ledger()
    ledger.create()
    ledger.plan(dict.fromkeys(seeded.team_ids, 0))
    for team_id in seeded.team_ids:
        ledger.remember_range_rows(team_id, 1_000)
    pause_after_the_first_slice(system)
    looks: list[int] = []
    look = batches.wait_while_paused

    def look_and_resume_later(of_task: Ledger, team_id: int) -> None:
        """After more looks than there are tries, somebody resumes."""
        if ledger.paused():
            looks.append(len(slices(system)))
        if len(looks) == RETRIES + 2:
            ledger.record("resumed")
        look(of_task, team_id)

    monkeypatch.setattr(batches, "wait_while_paused", look_and_resume_later)
    monkeypatch.setattr(connections, "PUT_OFF_SECONDS", 0)
    monkeypatch.setattr(pressure, "WAIT_IN_SLOT_SECONDS", 0)
    monkeypatch.setattr(pressure, "LOOK_EVERY_SECONDS", 0.01)

    run = system.run()

    assert run.state == "success"
    assert set(looks) == {1}, "slices while the run was paused"
    assert {task.try_number for task in run.get_task_instances() if task.task_id.startswith("team.")} == {1}
    assert {team.status for team in system.teams().values()} == {"verified"}
    assert system.disagreements() == {}
    assert system.value("SELECT count(*) FROM pdi2_migration.event WHERE what = 'task_failed'") == 0
