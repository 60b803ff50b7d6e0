"""What makes the tests quick: libraries that ask or set the same things anew for each statement do so once here.

Nothing of this changes an answer. Only this process's own engine and Airflow's checks of its own DAGs are concerned.
"""

from collections.abc import Mapping
from typing import Any

from clickhouse_connect.driver._backend.chdb_backend import ChdbBackend, _quote_setting_value
from clickhouse_connect.driver._backend.orchestration import ClientConfig, init_sequence, run_sync
from clickhouse_connect.driver._chdbclient import ChdbClient
from jsonschema import Draft202012Validator
from pdi2.core.engines.clickhouse import Warehouse


def _check_schema_once(schema: Any, *others: Any, check: Any = Draft202012Validator.check_schema) -> None:
    """Airflow checks its DAGs' params some 700 times in a run, which took half of Airflow's time."""
    if (text := repr(schema)) not in CHECKED_SCHEMAS:
        check(schema, *others)
        CHECKED_SCHEMAS.add(text)


CHECKED_SCHEMAS: set[str] = set()
Draft202012Validator.check_schema = _check_schema_once


def _ask_for_settings_once(client: ChdbClient, tz_source: Any) -> None:
    """A new client asks for all 1,500 settings; in this process's own engine, each new session has the same ones."""
    asked = ClientConfig(client._initial_settings or {}, tz_source)
    if repr(asked) not in SETTINGS_FOUND:
        SETTINGS_FOUND[repr(asked)] = run_sync(init_sequence(asked), client._execute_operation)
    client._apply_init_result(SETTINGS_FOUND[repr(asked)])


def _know_settings_once(warehouse: Warehouse, name: str, ask: Any = Warehouse._ask_first) -> Any:
    """A new warehouse asks for them too, with their limits."""
    client = warehouse._client
    if name != "settings" or not isinstance(client, ChdbClient):
        return ask(warehouse, name)
    known = repr(client._initial_settings)
    if known not in SETTINGS_FOUND:
        SETTINGS_FOUND[known] = ask(warehouse, name)
    return SETTINGS_FOUND[known]


SETTINGS_FOUND: dict[str, Any] = {}
"""By what a session begins with."""
ChdbClient._init_common_settings = _ask_for_settings_once
Warehouse._ask_first = _know_settings_once


def _set_at_once(backend: ChdbBackend, settings: Mapping[str, str]) -> None:
    """It would set a statement's settings one by one."""
    pairs = ", ".join(f"{name} = {_quote_setting_value(value)}" for name, value in settings.items())
    backend._query_locked(f"SET {pairs}", "TabSeparated")


def _set_back_at_once(backend: ChdbBackend, before: Mapping[str, tuple[str, bool]]) -> None:
    """It would ask before each such statement what the session has, and put that back one by one. No test sets anything
    for a whole session of this process's own engine."""
    backend._query_locked("SET " + ", ".join(f"{name} = DEFAULT" for name in before), "TabSeparated")


ChdbBackend._snapshot_settings_locked = lambda _, settings: dict.fromkeys(settings, ("", False))
ChdbBackend._apply_settings_locked = _set_at_once
ChdbBackend._restore_settings_locked = _set_back_at_once
