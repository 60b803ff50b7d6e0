"""Data to migrate: teams of very different sizes, histories as real ids have them, and some with lost evidence."""

import itertools
import random
from dataclasses import dataclass

import psycopg
from clickhouse_connect.driver.client import Client

from demo.schema import Table, sql

ROWS_PER_ID = 1.065
"""The rows per id that follow from the shares in sql/seed_history.sql, before any merge removes rows."""

RARE_IDS = 49
"""How many ids have a history without a share."""

# Seconds since 1970: the old table's first row is from June 2021, the dual write began on 14 February 2022, and
# everything ends two weeks later.
TIMES = {"old_begins": 1622505600, "new_begins": 1644796800, "end": 1646006400}

_SCRATCH = ["seed_history", "seed_team", "seed_id"]


@dataclass(frozen=True)
class Seeded:
    team_ids: tuple[int, ...]
    """The largest first."""
    old_rows: int


def seed(
    postgres: psycopg.Connection,
    clickhouse: Client,
    *,
    rows: int = 1_000_000,
    teams: int = 40,
    seed: int = 1,
    reused_ids: bool = False,
    zipf: bool = False,
) -> Seeded:
    """Fill the empty tables of demo.schema with about `rows` rows in the old one, the same for the same seed.

    The first team has half of the rows and the last teams a handful each; with `zipf`, sizes follow Zipf's law.

    `reused_ids` adds a few ids that were deleted and created again, and have a version in the new table above that in
    Postgres, which no migration can mend.
    """
    team_ids = random.Random(seed).sample(range(1, 25 * teams), teams)
    for table in _SCRATCH:
        clickhouse.command(sql(table))
    try:
        clickhouse.insert("seed_team", _spans(team_ids, sizes(round(rows / ROWS_PER_ID), teams, zipf)))
        clickhouse.command(
            sql("seed_draw"),
            parameters={**TIMES, "seed": seed, "rare_ids": RARE_IDS, "reused_ids": reused_ids},
        )
        _fill_clickhouse(clickhouse, rows)
        _fill_postgres(postgres, clickhouse)
    finally:
        for table in _SCRATCH:
            clickhouse.command(f"DROP TABLE {table} SYNC")
    [[old_rows]] = clickhouse.query(f"SELECT count() FROM {Table.OLD}").result_rows
    return Seeded(tuple(team_ids), old_rows)


def sizes(ids: int, teams: int, zipf: bool) -> list[int]:
    """How many of the ids each team has."""
    if zipf:
        unit = ids / sum(1 / rank for rank in range(1, teams + 1))
        return [max(1, round(unit / rank)) for rank in range(1, teams + 1)]
    few = teams // 10
    weights = [1 / rank**2 for rank in range(1, teams - few)]
    tail = [round(ids / 2 * weight / sum(weights)) for weight in weights]
    return [ids - sum(tail), *(max(1, size) for size in tail), *range(few, 0, -1)]


def _spans(team_ids: list[int], sizes: list[int]) -> list[tuple[int, int, int]]:
    """For each team, the number of its first id and the number after its last."""
    ends = list(itertools.accumulate(sizes))
    return [(team_id, end - size, end) for team_id, size, end in zip(team_ids, sizes, ends, strict=True)]


def _fill_clickhouse(clickhouse: Client, rows: int) -> None:
    old, new = sql("seed_old"), sql("seed_new")
    # Collapsed by the insert, like a merge that takes a link delivered twice for two links.
    clickhouse.command(old, parameters={**TIMES, "unlink_eaten": True}, settings={"optimize_on_insert": 1})
    parts = {
        "optimize_on_insert": 0,
        "max_insert_threads": 1,
        "max_block_size": max(1, rows // 8),
        "min_insert_block_size_rows": max(1, rows // 8),
        "min_insert_block_size_bytes": 0,
    }
    clickhouse.command(old, parameters={**TIMES, "unlink_eaten": False}, settings=parts)
    clickhouse.command(new, parameters=TIMES, settings=parts)


def _fill_postgres(postgres: psycopg.Connection, clickhouse: Client) -> None:
    with postgres.transaction():
        # Checking a million deferred foreign keys costs more than the rows, and the data fulfils them anyway.
        postgres.execute("SET LOCAL session_replication_role = replica")
        _copy(postgres, clickhouse, "posthog_team (id, name)", "seed_posthog_team")
        _copy(postgres, clickhouse, "posthog_person (id, created_at, uuid, team_id)", "seed_posthog_person")
        _copy(
            postgres,
            clickhouse,
            "posthog_persondistinctid (id, distinct_id, person_id, team_id, version)",
            "seed_posthog_persondistinctid",
        )
        for table in ["posthog_team", "posthog_person", "posthog_persondistinctid"]:
            postgres.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}")
    postgres.execute("ANALYZE posthog_team, posthog_person, posthog_persondistinctid")


def _copy(postgres: psycopg.Connection, clickhouse: Client, table: str, query: str) -> None:
    # ClickHouse's tab-separated text is the same as Postgres's COPY text, down to the escapes and the \\N.
    with (
        clickhouse.raw_stream(sql(query), parameters=TIMES, fmt="TabSeparated") as source,
        postgres.cursor().copy(f"COPY {table} FROM STDIN") as copy,
    ):
        while block := source.read(1 << 20):
            copy.write(block)
