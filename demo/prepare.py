"""`python -m demo seed`: the application's tables and data, in a Postgres and a ClickHouse that run elsewhere."""

import os

import clickhouse_connect
import psycopg

from demo.schema import create_clickhouse, create_postgres
from demo.seed import seed


def run(
    postgres: str,
    clickhouse_host: str,
    clickhouse_port: int,
    clickhouse_user: str,
    clickhouse_database: str,
    rows: int,
    teams: int,
) -> int:
    """Returns 0 where the data is there, now or before; 1 where an earlier call was interrupted."""
    with (
        psycopg.connect(postgres, autocommit=True) as application,
        clickhouse_connect.get_client(
            host=clickhouse_host,
            port=clickhouse_port,
            username=clickhouse_user,
            password=os.environ.get("CLICKHOUSE_PASSWORD", ""),
            database=clickhouse_database,
        ) as clickhouse,
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
