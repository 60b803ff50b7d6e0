"""The plugin. Airflow executes this file by itself; the package beside it is kept from that by .airflowignore."""

from airflow.plugins_manager import AirflowPlugin
from pdi2.edge import pool


class Pdi2Plugin(AirflowPlugin):
    name = "pdi2"
    listeners = [pool]  # noqa: RUF012  (Airflow's own form)
