"""The approval of the switch by a person in Airflow's UI. The ledger records who approved or rejected what."""

from typing import Any, NoReturn

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.providers.standard.triggers.hitl import HITLTrigger
from airflow.sdk.definitions.context import Context

from pdi2.core.engines.failures import MigrationError
from pdi2.core.report import certificate
from pdi2.core.state.ownership import refuse_unless_owner
from pdi2.core.state.switches import Switches
from pdi2.core.switch.gate import refuse_trials
from pdi2.edge.compat import TaskAwaitingInput
from pdi2.edge.connections import open_ledger, settings_of
from pdi2.edge.retries import deciding


class Approve(ApprovalOperator):
    """If `require_approval` is on, shows a person what was compared and waits for their approval."""

    @deciding
    def execute(self, context: Context) -> Any:
        with open_ledger() as ledger:
            refuse_unless_owner(ledger)
            settings = settings_of(ledger)
            if not settings.require_approval:
                self.log.info("No approval is required.")
                return None
            refuse_trials(settings)
            if Switches(ledger.connection).reads_are_new():  # somebody cleared a task that comes before
                self.log.info("Reads are on the new table already, so nobody is asked.")
                return None
            approval = ledger.approval()
            if approval.what == "switch_approved":
                self.log.info("%s has approved this certificate already.", approval.by)
                return None
            if approval.what == "approval_asked":
                self._wait_for_the_answer(context)
            self.body = certificate.for_approval(ledger, settings)
            try:
                return super().execute(context)
            except TaskAwaitingInput:
                ledger.record("approval_asked")
                raise

    def _wait_for_the_answer(self, context: Context) -> NoReturn:
        """Waits for the answer to the question that was already asked.

        If an answer comes quickly, Airflow may take the task for lost and run it again. Airflow still has the answer
        then, and asking again would delete it.
        """
        self.log.info("This certificate was put to a person before: their answer to that counts.")
        self.defer(
            trigger=HITLTrigger(
                ti_id=context["ti"].id, options=self.options, params=self.serialized_params, timeout_datetime=None
            ),
            method_name="execute_complete",
        )

    @deciding
    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        if user := event.get("responded_by_user"):
            what = "switch_approved" if event["chosen_options"] == [self.APPROVE] else "switch_rejected"
            with open_ledger() as ledger, ledger.transaction():
                ledger.hold_events()
                refuse_unless_owner(ledger)
                asked = ledger.approval().what
                if asked == "approval_asked":
                    ledger.record(what, by=user["name"])
                elif asked != what:  # the same answer may come twice, if a worker was lost
                    raise MigrationError(
                        "This answer is to an earlier question: another certificate was made, or something else "
                        "happened, since it was asked. The answer was not recorded, and reads stay as they are. Clear "
                        "the task approve: it asks again."
                    )
        return super().execute_complete(context, event)
