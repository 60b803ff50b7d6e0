"""Airflow on this machine, with its home in a directory and connections to the demo's two databases."""

import json
import os
import sys
from pathlib import Path

from demo.clickhouse_server import Server
from demo.postgres import Postgres

ROOT = Path(__file__).parent.parent
FILL, ROLLBACK, AUDIT = "fill_person_distinct_id2", "rollback_person_distinct_id2", "audit_person_distinct_id2"


def environment(directory: Path, postgres: Postgres, clickhouse: Server) -> dict[str, str]:
    """The variables with which `airflow` finds the DAGs, the plugin and the connections."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AIRFLOW_HOME": str((directory / "airflow").resolve()),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_POSTHOG_POSTGRES": json.dumps(postgres.airflow_connection("posthog")),
        "AIRFLOW_CONN_POSTHOG_CLICKHOUSE": json.dumps(clickhouse.airflow_connection("default")),
    }
