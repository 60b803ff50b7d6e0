"""The plugin. Airflow executes this file by itself; the package beside it is kept from that by .airflowignore."""

from functools import cached_property
from typing import Any

from airflow.plugins_manager import AirflowPlugin
from pdi2.edge import pool


class Pdi2Plugin(AirflowPlugin):
    name = "pdi2"
    listeners = [pool]  # noqa: RUF012  (Airflow's own form)

    # Every task loads its plugins, and only the API server needs the page: half a second and more of imports.

    @cached_property
    def fastapi_apps(self) -> list[Any]:
        from pdi2.edge import page

        return [{"app": page.app, "name": "pdi2", "url_prefix": page.PREFIX}]

    @cached_property
    def external_views(self) -> list[Any]:
        from pdi2.edge import page

        return page.VIEWS
