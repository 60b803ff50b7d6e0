"""Returns reads to person_distinct_id at once, while both tables are still written."""

from airflow.sdk import dag
from pdi2.edge import configuration, retries, tasks


@dag(
    dag_id="rollback_person_distinct_id2",
    description=__doc__,
    doc_md=__file__.removesuffix("py") + "md",  # Airflow reads it
    schedule=None,
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    on_failure_callback=configuration.notifier(),
    default_args=retries.RETRY_ARGS,
    tags=["clickhouse", "migration", "posthog"],
)
def rollback_person_distinct_id2() -> None:
    tasks.roll_back()


rollback_person_distinct_id2()
