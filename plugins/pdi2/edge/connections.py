"""Opens what a task works with: the ledger on Postgres, ClickHouse, and the run's validated settings."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from airflow.providers.clickhousedb.hooks.clickhouse import ClickHouseHook
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowException
from clickhouse_connect.driver.exceptions import ClickHouseError

from pdi2.core.clickhouse import Warehouse
from pdi2.core.cluster import catch_up
from pdi2.core.failures import WaitError, describe, told_of
from pdi2.core.gate import NoPlanError
from pdi2.core.ledger import Ledger, NotOwnerError
from pdi2.core.settings import SCHEMA, Settings

CLICKHOUSE = "posthog_clickhouse"
POSTGRES = "posthog_postgres"


@dataclass(frozen=True)
class Workbench:
    """What a task has before it."""

    ledger: Ledger
    warehouse: Warehouse
    settings: Settings


def open_ledger() -> Ledger:
    run = get_current_context()["dag_run"]
    connection: Any = PostgresHook(postgres_conn_id=POSTGRES).get_conn()
    connection.autocommit = True
    actor = getattr(run, "triggering_user_name", None) or "airflow"
    return Ledger(connection, f"{run.dag_id} {run.run_id}", actor)


def open_warehouse(purpose: str, max_memory_usage: int) -> Warehouse:
    return Warehouse(ClickHouseHook(clickhouse_conn_id=CLICKHOUSE).get_client, purpose, max_memory_usage)


def current_settings(schema: Mapping[str, Mapping[str, Any]] = SCHEMA) -> Settings:
    context = get_current_context()
    return Settings.validated(context["params"], context["dag_run"].conf, schema)


@contextmanager
def opened(purpose: str) -> Iterator[Workbench]:
    """For tasks that may write: the run must own the migration, and a failure is recorded in the ledger.

    ClickHouse's replica has caught up: what other replicas took until now is seen by the task's statements.
    """
    settings = current_settings()
    context = get_current_context()
    with ExitStack() as stack:
        ledger = open_ledger()
        stack.enter_context(ledger.connection)
        ledger.hold()
        try:
            with told_of(purpose):
                warehouse = stack.enter_context(open_warehouse(purpose, settings.max_memory_usage))
                catch_up(warehouse)
                yield Workbench(ledger, warehouse, settings)
        except (AirflowException, NotOwnerError, NoPlanError, WaitError):
            raise
        except Exception as error:
            if not ledger.connection.closed:
                ledger.record("task_failed", task=context["ti"].task_id, error=describe(error))
            raise


def reach(found: list[str], stack: ExitStack) -> tuple[Ledger | None, Warehouse | None]:
    """Connects to both databases for preflight; what cannot be reached goes to `found` with its next step."""
    ledger = warehouse = None
    try:
        ledger = open_ledger()
        stack.enter_context(ledger.connection)
    except (AirflowException, psycopg.Error) as error:
        found.append(_unreachable(POSTGRES, "Postgres", error))
    try:
        warehouse = stack.enter_context(open_warehouse("preflight", Settings().max_memory_usage))
    except (AirflowException, ClickHouseError) as error:
        found.append(_unreachable(CLICKHOUSE, "ClickHouse", error))
    return ledger, warehouse


def _unreachable(connection_id: str, database: str, error: Exception) -> str:
    return (
        f"{database} cannot be reached through the Airflow connection {connection_id}: {describe(error)}. "
        "Check the connection's address, user and password, and that the server is up."
    )
