"""A person's answer counts for the certificate that they were shown, and for no other."""

import contextlib
from types import SimpleNamespace

import pytest
from conftest import FILL, System
from pdi2.core.engines.failures import MigrationError
from pdi2.core.state.ledger import Approval, Ledger
from pdi2.core.state.ownership import NotOwnerError, claim
from pdi2.core.state.settings import Settings
from pdi2.core.switch.gate import GateError, certify
from pdi2.edge import connections
from pdi2.edge.approval import Approve
from stories import TEAM, migrate_together, two_ids_each


@pytest.mark.parametrize("answer", ["Approve", "Reject"])
def test_a_late_answer_counts_for_no_other_certificate(
    system: System, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    def answer_for(run: Ledger) -> None:
        dag_run = SimpleNamespace(dag_id=FILL, run_id=run.airflow_run.partition(" ")[2])
        monkeypatch.setattr(connections, "get_current_context", lambda: {"dag_run": dag_run, "params": {}})
        event = {"chosen_options": [answer], "params_input": {}, "responded_by_user": {"name": "bob"}}
        with contextlib.suppress(KeyError):  # Airflow's own part wants more
            Approve(task_id="approve", subject="?").execute_complete({}, event)

    ledger = system.ledger(f"{FILL} a run")
    ledger.create()
    with ledger.transaction():
        claim(ledger, {})
    ledger.record("approval_asked")
    ledger.record("certified")
    with pytest.raises(MigrationError, match="This answer is to an earlier question"):
        answer_for(ledger)

    later = system.ledger(f"{FILL} later")
    with later.transaction():
        claim(later, {})
    later.record("approval_asked")
    with pytest.raises(NotOwnerError):
        answer_for(ledger)
    assert later.approval() == Approval("approval_asked", None)
    for _ in range(2):
        answer_for(later)
        assert later.approval().by == "bob"


def test_nobody_is_asked_to_approve_a_trial(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody cleared `approve` alone: what was certified is not every team, and nothing may be switched."""
    dag_run = SimpleNamespace(dag_id=FILL, run_id="a trial")
    monkeypatch.setattr(connections, "get_current_context", lambda: {"dag_run": dag_run})
    trial, ledger = Settings(team_ids=(TEAM,), require_approval=True), system.ledger(f"{FILL} a trial")
    two_ids_each(system, TEAM, TEAM + 1)
    migrate_together(system, ledger, trial)
    certify(ledger, system.warehouse(), trial)

    with pytest.raises(GateError, match="trial of single teams, which switches nothing"):
        Approve(task_id="approve", subject="?").execute({})
    assert ledger.approval().what == "certified"
