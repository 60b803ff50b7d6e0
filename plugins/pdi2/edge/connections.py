"""Opens what a task works with: the ledger in Postgres, ClickHouse, and the run's validated settings."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pendulum
import psycopg
from airflow.providers.clickhousedb.hooks.clickhouse import ClickHouseHook
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowException
from clickhouse_connect.driver.exceptions import ClickHouseError

from pdi2.core.cluster.ours import catch_up, follow
from pdi2.core.engines import sessions
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import BusyError, Reaction, WaitError, describe, naming_failures, uncut
from pdi2.core.plan.postgres_checks import read_only
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.ownership import NotOwnerError, hold, settings_of_run
from pdi2.core.state.settings import SCHEMA, Settings
from pdi2.core.switch.gate import NoPlanError
from pdi2.edge import SETTINGS
from pdi2.edge.compat import AirflowRescheduleException

CLICKHOUSE = "posthog_clickhouse"
POSTGRES = "posthog_postgres"
FORBIDS_CONNECTING = {
    158: "max_rows_to_read below 10,000",
    161: "max_columns_to_read below 3",
    165: "max_temporary_columns below 20",
    166: "max_temporary_non_const_columns below 20",
    167: "a low max_ast_depth",
    168: "a low max_ast_elements",
    307: "max_bytes_to_read of less than some megabytes",
    396: "max_result_rows or max_result_bytes below 10,000 rows of settings",
    703: "use_query_cache = 1",
    704: "use_query_cache = 1",
    719: "use_query_cache = 1",
}
"""Settings of a profile, by error code, with which the client library cannot connect: it reads all of the server's
settings then, and sends none of ours with that query."""
SPOILS_CONNECTING = {
    "Unexpected response to server version query: ''": "offset or additional_result_filter",
    "Unrecognized ClickHouse type": "output_format_native_encode_types_in_binary_format = 1",
}
"""The same, by what the client library says of an answer that it does not understand."""
CONNECT_SECONDS = 10
PUT_OFF_SECONDS = 60
"""How long a task gives up its worker slot while the server is busy, a replica is away or the migration is paused. This
uses up none of Airflow's tries."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workbench:
    """What a task works with."""

    ledger: Ledger
    warehouse: Warehouse
    settings: Settings


@contextmanager
def open_ledger() -> Iterator[Ledger]:
    run = get_current_context()["dag_run"]
    actor = getattr(run, "triggering_user_name", None) or "airflow"
    with sessions.begin(connect_postgres) as connection:
        yield Ledger(connection, f"{run.dag_id} {run.run_id}", actor)


def connect_postgres() -> Any:
    """Connects with a timeout, because a pooler whose server is away keeps a connection waiting for minutes."""
    connection = PostgresHook.get_connection(POSTGRES)
    connection.extra = json.dumps({"connect_timeout": CONNECT_SECONDS, **connection.extra_dejson})
    return PostgresHook(connection=connection).get_conn()


def open_warehouse(purpose: str, max_memory_usage: int) -> Warehouse:
    warehouse = Warehouse(ClickHouseHook(clickhouse_conn_id=CLICKHOUSE).get_client, purpose, max_memory_usage)
    # Airflow calls the task's on_kill when it kills the task, so that nothing goes on in ClickHouse.
    vars(get_current_context()["task"])["on_kill"] = warehouse.kill
    return warehouse


def current_settings(schema: Mapping[str, Mapping[str, Any]] = SCHEMA) -> Settings:
    context = get_current_context()
    return Settings.validated(context["params"], context["dag_run"].conf, schema)


def settings_of(ledger: Ledger) -> Settings:
    """The run's settings as the ledger has kept them, or as preflight saw them, because Airflow reads `[pdi2] defaults`
    anew for every task, on the worker that runs it."""
    if kept := settings_of_run(ledger):
        return kept
    seen = get_current_context()["ti"].xcom_pull(task_ids="preflight", key=SETTINGS)
    return Settings.from_dict(seen) if seen else current_settings()


@contextmanager
def opened(purpose: str) -> Iterator[Workbench]:
    """Opens both databases for tasks that may write: the run must own the migration; failures go to the ledger.

    Our ClickHouse replica has caught up, so the task's statements see what other replicas have received until now.
    """
    context = get_current_context()
    with ExitStack() as stack:
        ledger = stack.enter_context(open_ledger())
        refuse_a_standby(ledger)
        hold(ledger)
        settings = settings_of(ledger)
        try:
            with naming_failures(purpose):
                warehouse = stack.enter_context(open_warehouse(purpose, settings.max_memory_usage))
                catch_up(warehouse)
                follow(ledger, warehouse)
                yield Workbench(ledger, warehouse, settings)
        except WaitError as wait:
            log.warning("%s", wait)
            raise put_off() from wait
        except (AirflowException, NotOwnerError, NoPlanError):
            raise
        except Exception as error:
            if not ledger.connection.closed:
                ledger.record("task_failed", task=context["ti"].task_id, error=describe(error))
            raise


def refuse_a_standby(ledger: Ledger) -> None:
    """Raises BusyError if nothing can be written, as after a failover: a repair comes before the first write."""
    for reason in read_only(ledger.connection):
        raise BusyError(
            f"{reason} This task did nothing, because what a standby says may be out of date. Airflow tries again; "
            "if it has given up, trigger the run again: it does only what is missing."
        )


def put_off() -> AirflowRescheduleException:
    """What a task raises to give up its worker slot for PUT_OFF_SECONDS."""
    return AirflowRescheduleException(pendulum.now().add(seconds=PUT_OFF_SECONDS))


def reach(found: list[str], stack: ExitStack) -> tuple[Ledger | None, Warehouse | None]:
    """Connects to both databases for preflight; adds to `found` which cannot be reached, and what to do about it."""
    ledger = warehouse = None
    try:
        ledger = stack.enter_context(open_ledger())
    except sessions.PoolerError as error:
        found.append(str(error))
    except (AirflowException, psycopg.Error) as error:
        found.append(_unreachable(POSTGRES, "Postgres", error))
    try:
        warehouse = stack.enter_context(open_warehouse("preflight", Settings().max_memory_usage))
    except (AirflowException, ClickHouseError) as error:
        if getattr(error, "code", None) is not None and uncut(error) is Reaction.RETRY:
            raise  # the server answers, and the failure passes by itself
        found.append(_closed(error) or _unreachable(CLICKHOUSE, "ClickHouse", error))
    return ledger, warehouse


def _closed(error: Exception) -> str | None:
    """The problem if the user's profile keeps the client library from reading the server's settings as it connects."""
    code, said = getattr(error, "code", None), str(error)
    spoils = (setting for words, setting in SPOILS_CONNECTING.items() if code is None and words in said)
    if setting := FORBIDS_CONNECTING.get(code or 0) or next(spoils, None):
        return (
            f"With {setting} in its profile, the ClickHouse user cannot even read the server's settings, as the client "
            f"library does when it connects: {describe(error) if code else said}. Give the user of {CLICKHOUSE} a "
            "profile without it."
        )
    return None


def _unreachable(connection_id: str, database: str, error: Exception) -> str:
    return (
        f"{database} cannot be reached through the Airflow connection {connection_id}: {describe(error)}. "
        "Check the connection's address, user and password, and that the server is up."
    )
