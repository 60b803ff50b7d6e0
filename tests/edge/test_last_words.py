"""What a task leaves for its reader: figures as XCom, and advice as the last line of its log if it fails."""

import pytest
from conftest import System
from stories import ALICE, add_teams, event, insert_old, insert_truth

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("airflow_metadata")]


def lines_of(caplog: pytest.LogCaptureFixture, *loggers: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name in loggers]


def returned(run: object, task_id: str) -> object:
    """What the first mapped task of that name returned."""
    [ti] = [
        ti for ti in run.get_task_instances()  # type: ignore[attr-defined]
        if (ti.task_id, ti.map_index) == (task_id, 0)
    ]  # fmt: skip
    return ti.xcom_pull(task_ids=task_id, map_indexes=0)


def test_tasks_say_what_they_did_and_return_their_figures(system: System, log: pytest.LogCaptureFixture) -> None:
    add_teams(system, 7)
    insert_truth(system, ALICE)
    insert_truth(system, ALICE, distinct_id="missing")
    insert_old(system, [event("+A1")])
    run = system.run()

    said = "\n".join(lines_of(log, "pdi2.edge.tasks"))
    assert run.state == "success"
    assert "The application writes both tables as of 20" in said
    assert "Planned 1 team with 1 row in 1 task, the largest first: team 7 with 1 row." in said
    copied, verified = returned(run, "team.copy"), returned(run, "team.verify")
    assert isinstance(copied, dict)
    assert copied.keys() == {"teams", "rows_source", "rows_copied", "slices", "seconds", "peak_memory_mb"}
    assert (copied["teams"], copied["rows_copied"], copied["slices"]) == (1, 1, 1)
    assert verified == {"teams": 1, "verified": 1, "findings": {"missing": {"repaired": 1, "remaining": 0}}}


def test_the_last_line_of_a_failed_tasks_log_says_what_to_do(system: System, log: pytest.LogCaptureFixture) -> None:
    """The line comes after the end of the group that Airflow 3.3 folds around the traceback, so it is not hidden."""
    system.clickhouse.command("DROP TABLE person_distinct_id2")
    run = system.run()

    assert run.state == "failed"
    ending, *said = lines_of(log, "pdi2.edge.retries")
    advice = next(line for line in said if line != ending)
    assert ending == "::endgroup::"
    problem, next_step = advice.splitlines()[0], advice.splitlines()[-1]
    assert problem.startswith("The migration cannot begin, for ")
    assert "person_distinct_id2" in advice
    assert next_step == "A retry cannot help. The error itself says what to do."
