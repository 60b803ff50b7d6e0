"""Returns reads to person_distinct_id at once, while both tables are still written."""

from airflow.sdk import dag
from pdi2.edge import tasks


@dag(
    dag_id="rollback_person_distinct_id2",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args=tasks.default_args,
    tags=["clickhouse", "migration", "posthog"],
)
def rollback_person_distinct_id2() -> None:
    tasks.roll_back()


rollback_person_distinct_id2()
