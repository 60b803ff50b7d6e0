"""Whose is this distinct_id: the application's answer from either table, and Postgres's, the truth.

ClickHouse keeps ids as bytes. Here they are str; bytes that are not UTF-8 become surrogate escapes, so that
no two ids become one.
"""

import time
from collections.abc import Sequence
from uuid import UUID

import psycopg
from clickhouse_connect.driver.client import Client

from demo.schema import Table, sql
from demo.switches import Switches

_READ = {Table.OLD: sql("read_old"), Table.NEW: sql("read_new")}


class Reader:
    """One process of the application that reads."""

    def __init__(self, clickhouse: Client, switches: Switches) -> None:
        self.clickhouse = clickhouse
        self.switches = switches

    def person_of(self, team_id: int, distinct_ids: Sequence[str]) -> dict[str, UUID]:
        """The person of each id, through the table that the read switch names; unknown ids are left out."""
        return _answers(
            self.clickhouse,
            f"SELECT distinct_id, person_id FROM ({_READ[self.switches.reads()]})"
            " WHERE distinct_id IN {distinct_ids:Array(String)}",
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


def seconds_to_count_persons(clickhouse: Client, table: Table, team_id: int) -> float:
    """How long ClickHouse takes to count a team's persons: the read below most of PostHog's insights."""
    start = time.perf_counter()
    clickhouse.query(f"SELECT uniqExact(person_id) FROM ({_READ[table]})", parameters={"team_id": team_id})
    return time.perf_counter() - start


def _answers(clickhouse: Client, query: str, parameters: dict[str, object]) -> dict[str, UUID]:
    rows = clickhouse.query(query, parameters=parameters, query_formats={"String": "bytes"}).result_rows
    return {distinct_id.decode(errors="surrogateescape"): person for distinct_id, person in rows}
