"""Compares person_distinct_id2 with Postgres as the migration's verify does; fails if they have drifted apart."""

from pathlib import Path

from airflow.sdk import dag
from pdi2.edge import audit, configuration, tasks


@dag(
    dag_id="audit_person_distinct_id2",
    description=__doc__,
    doc_md=Path(__file__).with_suffix(".md").read_text(),
    schedule=configuration.schedule("audit_schedule"),
    catchup=False,
    max_active_runs=1,
    params=audit.params(),
    on_failure_callback=configuration.notifier(),
    default_args=tasks.default_args,
    tags=["clickhouse", "migration", "posthog"],
)
def audit_person_distinct_id2() -> None:
    audit.compare.expand(batch=audit.choose_teams()) >> audit.report_drift()


audit_person_distinct_id2()
