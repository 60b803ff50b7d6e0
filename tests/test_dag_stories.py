"""Whole runs of the DAGs, through Airflow, on the real engines."""

import pytest
from conftest import System

from demo.seed import seed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("airflow_metadata")]


def test_a_fresh_run_migrates_every_team_and_switches(system: System) -> None:
    seed(system.postgres, system.clickhouse, rows=5_000, teams=6)

    run = system.run()

    assert run.state == "success"
    assert system.disagreements() == {}
    assert {team.status for team in system.teams().values()} == {"verified"}
    assert (system.status(), system.value("SELECT progress FROM posthog_asyncmigration")) == (2, 100)
    assert system.switches() == {"reads": "new", "writes": "new"}
