"""Moves person_distinct_id to person_distinct_id2: live, team by team, verified against Postgres before the switch."""

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import dag, task_group
from pdi2.edge import END, approval, configuration, ending, retries, tasks


@dag(
    dag_id="fill_person_distinct_id2",
    description=__doc__,
    doc_md=__file__.removesuffix("py") + "md",  # Airflow reads it
    schedule=configuration.schedule(),
    catchup=False,
    max_active_runs=1,
    params=configuration.params(),
    deadline=configuration.deadline(),
    on_failure_callback=configuration.notifier(),
    default_args=retries.RETRY_ARGS,
    tags=["clickhouse", "migration", "posthog"],
)
def fill_person_distinct_id2() -> None:
    certify = tasks.certify()

    @task_group
    def team(batch: dict) -> None:
        tasks.copy(batch=batch) >> [tasks.verify(batch=batch), certify]

    preflight = tasks.preflight()
    enable_dual_writes = tasks.enable_dual_writes()
    plan_teams = tasks.plan_teams()
    teams = team.expand(batch=plan_teams)
    approve = approval.Approve(
        task_id="approve", subject="Switch reads to person_distinct_id2?", ignore_downstream_trigger_rules=True
    )
    stop_old_writes = tasks.stop_old_writes()
    end = EmptyOperator(task_id=END, trigger_rule="none_failed_min_one_success")

    preflight >> enable_dual_writes >> tasks.prove_dual_writes() >> plan_teams >> teams >> certify
    certify >> approve >> tasks.switch_reads() >> stop_old_writes
    preflight >> [plan_teams, certify, stop_old_writes, end]
    stop_old_writes >> end
    [teams, stop_old_writes] >> ending.report().as_teardown(on_failure_fail_dagrun=True)


fill_person_distinct_id2()
