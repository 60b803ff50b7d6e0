"""Compares person_distinct_id2 with Postgres as the migration's verify does; fails if they have drifted apart."""

from airflow.sdk import dag
from pdi2.edge import audit, configuration, retries


@dag(
    dag_id="audit_person_distinct_id2",
    description=__doc__,
    doc_md=__file__.removesuffix("py") + "md",  # Airflow reads it
    schedule=configuration.schedule("audit_schedule"),
    catchup=False,
    max_active_runs=1,
    params=audit.params(),
    on_failure_callback=configuration.notifier(),
    default_args=retries.RETRY_ARGS,
    tags=["clickhouse", "migration", "posthog"],
)
def audit_person_distinct_id2() -> None:
    audit.compare.expand(batch=audit.choose_teams()) >> audit.report_drift()


audit_person_distinct_id2()
