"""Whose is this distinct_id? The application's answer from either table, and Postgres's answer, which is the truth.

ClickHouse keeps ids as bytes. Here they are str, and bytes that are not UTF-8 become surrogate escapes, so that no two
ids become the same.
"""

import random
from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

import psycopg
from clickhouse_connect.driver.client import Client

from demo.schema import Table, sql

_READ = {Table.OLD: sql("read_old"), Table.NEW: sql("read_new")}


class Link(NamedTuple):
    """What Postgres says about an id."""

    person: UUID
    version: int


def persons_in(clickhouse: Client, table: Table, team_id: int, distinct_ids: Iterable[str]) -> dict[str, UUID]:
    """The person of each id, as a reader of `table` sees it; unknown ids are left out."""
    return _answers(
        clickhouse,
        f"SELECT distinct_id, person_id FROM ({_READ[table]}) WHERE distinct_id IN {{distinct_ids:Array(String)}}",
        {"team_id": team_id, "distinct_ids": list(distinct_ids)},
    )


def team_in(clickhouse: Client, table: Table, team_id: int) -> dict[str, UUID]:
    """The person of every id of a team, as a reader of `table` sees it."""
    return _answers(clickhouse, _READ[table], {"team_id": team_id})


def truth_of(postgres: psycopg.Connection, team_id: int) -> dict[str, UUID]:
    """The person of every id of a team, as Postgres has it."""
    query = """
        SELECT distinct_id, uuid
        FROM posthog_persondistinctid JOIN posthog_person ON posthog_person.id = person_id
        WHERE posthog_persondistinctid.team_id = %s
    """
    return dict(postgres.execute(query, [team_id]).fetchall())


def disagreements(postgres: psycopg.Connection, clickhouse: Client, team_id: int, table: Table = Table.NEW) -> set[str]:
    """The ids of a team for which the table's reader and Postgres disagree."""
    return {id_ for id_, _ in team_in(clickhouse, table, team_id).items() ^ truth_of(postgres, team_id).items()}


def links_of(postgres: psycopg.Connection, team_id: int, distinct_ids: Iterable[str]) -> dict[str, Link]:
    """What Postgres says about each id; unknown ids are left out."""
    query = """
        SELECT distinct_id, uuid, coalesce(version, 0)
        FROM posthog_persondistinctid JOIN posthog_person ON posthog_person.id = person_id
        WHERE posthog_persondistinctid.team_id = %s AND distinct_id = ANY(%s)
    """
    return {row[0]: Link(*row[1:]) for row in postgres.execute(query, [team_id, list(distinct_ids)])}


def some_ids(postgres: psycopg.Connection, team_id: int, chance: random.Random, limit: int) -> dict[str, int]:
    """Some neighbouring ids of a team, from random places in the index, with their primary keys."""
    query = """
        SELECT distinct_id, id FROM posthog_persondistinctid
        WHERE team_id = %s AND distinct_id >= %s
        ORDER BY distinct_id LIMIT %s
    """
    starts = [f"{chance.randrange(256):02X}", f"user{chance.randrange(10**6)}", ""]
    return {
        distinct_id: key
        for start in starts
        for distinct_id, key in postgres.execute(query, [team_id, start, limit // len(starts) + 1])
    }


def ids_with_one_row(clickhouse: Client, team_id: int, distinct_ids: Iterable[str]) -> list[str]:
    """The ids that have a single row in the old table, which is a link."""
    query = """
        SELECT distinct_id FROM person_distinct_id
        WHERE team_id = {team_id:Int64} AND distinct_id IN {distinct_ids:Array(String)}
        GROUP BY distinct_id HAVING count() = 1 AND sum(_sign) = 1
    """
    parameters = {"team_id": team_id, "distinct_ids": list(distinct_ids)}
    return [distinct_id for (distinct_id,) in clickhouse.query(query, parameters=parameters).result_rows]


def _answers(clickhouse: Client, query: str, parameters: dict[str, object]) -> dict[str, UUID]:
    rows = clickhouse.query(query, parameters=parameters, query_formats={"String": "bytes"}).result_rows
    return {distinct_id.decode(errors="surrogateescape"): person for distinct_id, person in rows}
