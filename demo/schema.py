"""PostHog's tables, as far as the migration touches them, in both engines."""

import re
from enum import StrEnum
from pathlib import Path

import psycopg
from clickhouse_connect.driver.client import Client

MIGRATION = "0003_fill_person_distinct_id2"
KEEPER_PATH = "/clickhouse/tables/noshard/posthog"
"""PostHog's path in Keeper is this, a dot and the table's name; its replica name is '{replica}-{shard}'. Both are from
posthog/clickhouse/table_engines.py of 1.31 to 1.33, with CLICKHOUSE_REPLICATION."""


class Table(StrEnum):
    """The two ClickHouse tables that say which person a distinct_id belongs to."""

    OLD = "person_distinct_id"
    NEW = "person_distinct_id2"


def sql(name: str) -> str:
    """The text of demo/sql/`name`.sql."""
    return (Path(__file__).parent / "sql" / f"{name}.sql").read_text()


def create_postgres(postgres: psycopg.Connection) -> None:
    """Create the posthog_* tables; both switches say "old", and the migration's row says NotStarted."""
    with postgres.transaction():
        postgres.execute(sql("postgres"))
        postgres.execute(
            "INSERT INTO posthog_asyncmigration (name, description) VALUES (%s, %s)",
            [MIGRATION, "Fill person_distinct_id2, the faster table of distinct ids"],
        )


def create_clickhouse(
    clickhouse: Client, later: bool = False, *, keeper_path: str = "", replica: str = "{replica}-{shard}"
) -> None:
    """Create the two tables in the client's database: as PostHog 1.31 to 1.33 does, or as `later` releases do.

    With a path in Keeper (PostHog's is KEEPER_PATH), each table is a replica there, with the name `replica`.
    """
    for table in Table:
        definition = sql(f"{table}_later" if later and table is Table.NEW else table)
        if keeper_path:
            place = rf"ENGINE = Replicated\1('{keeper_path}.{table}', '{replica}', "
            definition = re.sub(r"ENGINE = (\w+)\(", place, definition)
        clickhouse.command(definition)


def add_team(postgres: psycopg.Connection, team_id: int) -> None:
    postgres.execute("INSERT INTO posthog_team (id, name) VALUES (%s, %s)", [team_id, f"Team {team_id}"])
