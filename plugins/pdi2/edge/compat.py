"""Names that Airflow 3.1 and 3.2 have in other places than 3.3, or not at all."""

try:
    from airflow.sdk.exceptions import AirflowRescheduleException, AirflowSkipException
except ImportError:  # 3.1
    from airflow.exceptions import AirflowRescheduleException, AirflowSkipException  # type: ignore[no-redef]

try:
    from airflow.sdk.exceptions import TaskAwaitingInput
except ImportError:  # 3.1 and 3.2: a task that waits for a person is deferred to Airflow's triggerer
    from airflow.providers.common.compat.sdk import TaskDeferred as TaskAwaitingInput  # type: ignore[assignment]

try:
    from airflow.sdk import RetryPolicy
except ImportError:  # 3.1 and 3.2
    RetryPolicy = None  # type: ignore[misc, assignment]

__all__ = ["AirflowRescheduleException", "AirflowSkipException", "RetryPolicy", "TaskAwaitingInput"]
