"""The Airflow plugin. Airflow executes this file; .airflowignore keeps it from executing the package beside it."""

from functools import cached_property
from typing import Any

from airflow.plugins_manager import AirflowPlugin
from pdi2.edge import pool


class Pdi2Plugin(AirflowPlugin):
    name = "pdi2"
    listeners = [pool]  # noqa: RUF012  (Airflow's own form)

    # Every task loads the plugins, but only the API server needs the page, whose imports take half a second or more.

    @cached_property
    def fastapi_apps(self) -> list[Any]:
        from pdi2.edge import page

        return [{"app": page.app, "name": "pdi2", "url_prefix": page.PREFIX}]

    @cached_property
    def external_views(self) -> list[Any]:
        from pdi2.edge import page

        return page.VIEWS
