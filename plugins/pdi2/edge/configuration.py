"""The options for every run, from section [pdi2] of Airflow's configuration: airflow.cfg or AIRFLOW__PDI2__NAME.

Airflow parses a DAG file over and over. Reading its configuration costs nothing then, while a Variable would query the
metadata database each time. A wrong option is an import error of the DAG, which Airflow's UI shows at the top.
"""

import json
import pkgutil
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from airflow.configuration import AIRFLOW_HOME
from airflow.providers.common.compat.sdk import conf
from airflow.sdk import BaseNotifier, Param
from croniter import croniter

from pdi2.core.state.settings import SCHEMA, Settings, SettingsError

SECTION = "pdi2"


class ConfigurationError(Exception):
    """An option of section [pdi2] cannot be used."""

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"[{SECTION}] {option} (AIRFLOW__{SECTION.upper()}__{option.upper()}): {problem}")


def schedule(option: str = "schedule") -> str | None:
    """When the migration (or the audit, with "audit_schedule") runs by itself, as cron or a preset; None: by hand."""
    text = _text(option)
    if text and not croniter.is_valid(text):
        raise ConfigurationError(option, f'"{text}" is neither a cron expression nor a preset such as @daily.')
    return text


def params() -> dict[str, Param]:
    """The form's fields. `defaults`, a JSON object, changes what they contain, and so what a scheduled run does."""
    defaults = _json_object("defaults")
    try:
        Settings.validated({}, defaults)
    except SettingsError as error:
        raise ConfigurationError("defaults", str(error)) from error
    return {
        name: Param(**{**schema, "default": defaults.get(name, schema["default"])}) for name, schema in SCHEMA.items()
    }


def deadline() -> Any:
    """A DeadlineAlert that calls the notifier if a run is not over `deadline_minutes` after it was queued, or None."""
    minutes = conf.getint(SECTION, "deadline_minutes", fallback=0)
    if not minutes:
        return None
    path, kwargs = _text("notifier"), _json_object("notifier_kwargs")
    if path is None:
        raise ConfigurationError("deadline_minutes", "name a notifier too, or nobody hears of a run that is late.")
    notifier()
    try:
        from airflow.sdk.definitions.callback import SyncCallback
        from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
    except ImportError as error:
        raise ConfigurationError("deadline_minutes", "Airflow reports late runs from 3.2 on: upgrade it.") from error
    callback = SyncCallback(path, kwargs=kwargs)
    return DeadlineAlert(DeadlineReference.DAGRUN_QUEUED_AT, timedelta(minutes=minutes), callback, name="late run")


def notifier() -> Callable[..., Any] | None:
    """What Airflow calls with its context when a run fails: an Airflow notifier or a function `(context, **kwargs)`."""
    path, kwargs = _text("notifier"), _json_object("notifier_kwargs")
    if path is None:
        return None
    try:
        named = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            "notifier",
            f"{path} cannot be imported: {error}. Give the import path of a notifier, such as "
            "airflow.providers.smtp.notifications.smtp.SmtpNotifier, and install its provider.",
        ) from error
    if isinstance(named, type) and issubclass(named, BaseNotifier):
        try:
            return named(**kwargs)
        except TypeError as error:
            raise ConfigurationError("notifier_kwargs", f"{path} refuses them: {error}") from error
    if isinstance(named, type) or not callable(named):
        raise ConfigurationError("notifier", f"{path} is neither an Airflow notifier nor a function.")
    return partial(named, **kwargs)


def certificates() -> str:
    """Where `report` writes the certificate: any path or address that Airflow's ObjectStoragePath accepts."""
    return _text("certificates") or f"file://{AIRFLOW_HOME}/certificates"


def _text(option: str) -> str | None:
    return conf.get(SECTION, option, fallback="").strip() or None


def _json_object(option: str) -> dict[str, Any]:
    try:
        value = json.loads(_text(option) or "{}")
    except json.JSONDecodeError as error:
        raise ConfigurationError(option, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigurationError(option, "is not a JSON object.")
    return value
