"""`python -m demo seed`: creates the application's tables and data in a Postgres and a ClickHouse run by others."""

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import clickhouse_connect
import psycopg
from clickhouse_connect.driver.exceptions import Error as ClickHouseFailure

from demo.schema import create_clickhouse, create_postgres
from demo.seed import seed

WITHIN_SECONDS = 60.0
"""How long a database may take to come up."""
AGAIN_SECONDS = 1.0
Reached = TypeVar("Reached")


def run(
    postgres: str,
    clickhouse_host: str,
    clickhouse_port: int,
    clickhouse_user: str,
    clickhouse_database: str,
    rows: int,
    teams: int,
) -> int:
    """Returns 0 if the data is there, from this call or an earlier one; 1 if an earlier call was interrupted."""
    address: dict[str, Any] = {"host": clickhouse_host, "port": clickhouse_port, "database": clickhouse_database}
    address |= {"username": clickhouse_user, "password": os.environ.get("CLICKHOUSE_PASSWORD", "")}
    with (
        _reached(lambda: psycopg.connect(postgres, autocommit=True)) as application,
        _reached(lambda: clickhouse_connect.get_client(**address)) as clickhouse,
    ):
        if application.execute("SELECT to_regclass('posthog_team')").fetchone() != (None,):
            if application.execute("SELECT 1 FROM posthog_persondistinctid LIMIT 1").fetchone():
                print("The data is there already")
                return 0
            print("An earlier call was interrupted. Start anew, with empty databases")
            return 1
        create_postgres(application)
        create_clickhouse(clickhouse)
        seeded = seed(application, clickhouse, rows=rows, teams=teams)
        print(f"Seeded {seeded.old_rows:,} rows of {len(seeded.team_ids)} teams")
        return 0


def _reached(connect: Callable[[], Reached]) -> Reached:
    """A connection, as soon as the server is up. If a server answers with an error, this does not wait."""
    deadline = time.monotonic() + WITHIN_SECONDS
    while True:
        try:
            return connect()
        except (psycopg.OperationalError, ClickHouseFailure) as failure:
            answered = isinstance(failure, ClickHouseFailure) and failure.code is not None
            if answered or time.monotonic() > deadline:
                raise
        time.sleep(AGAIN_SECONDS)
