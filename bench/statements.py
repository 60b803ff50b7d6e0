"""The statements that the copy is compared with, the data that all of them copy, and how results are written."""

from collections.abc import Sequence
from typing import Any

from clickhouse_connect.driver.client import Client
from tabulate import tabulate

TEAM = 7
PARTS = 10

POSTHOG = """
INSERT INTO person_distinct_id2 (team_id, distinct_id, person_id, is_deleted, version)
SELECT team_id, distinct_id, argMax(person_id, latest), 0, 0
FROM (
    SELECT team_id, distinct_id, person_id, max(_timestamp) AS latest
    FROM person_distinct_id
    WHERE team_id = {team_id:Int64}
    GROUP BY person_id, distinct_id, team_id
    HAVING max(is_deleted) = 0
)
GROUP BY team_id, distinct_id
"""

PLAIN = """
INSERT INTO person_distinct_id2 (team_id, distinct_id, person_id, is_deleted, version, _timestamp, _offset, _partition)
SELECT team_id, distinct_id, person_id, 0, 0, _timestamp, _offset, 0
FROM person_distinct_id
WHERE team_id = {team_id:Int64}
"""

# Complex ids are, in equal shares, re-linked with the unlink, re-linked without it, delivered twice, deleted, or
# unlinked and linked again. The order of numbers spreads every part over the whole range of ids.
SEED = """
INSERT INTO person_distinct_id (team_id, distinct_id, person_id, _sign, _timestamp, _offset)
SELECT {team_id:Int64}, id, toUUID(concat(substring(person, 1, 8), '-', substring(person, 9, 4), '-4',
           substring(person, 14, 3), '-8', substring(person, 18, 3), '-', substring(person, 21, 12))),
       event.2, toDateTime(1600000000 + number % 50000000 + event.3), number * 10 + event.3
FROM (
    SELECT number, event,
           multiIf(hash % 3 = 0, concat(lower(hex(hash)), '-', lower(hex(cityHash64(hash)))),
                   hash % 3 = 1, concat('user', toString(hash % 100000000000), '@example.com'),
                   concat(lower(hex(hash)), '_device')) AS id,
           lower(hex(MD5(toString(event.1)))) AS person
    FROM (
        SELECT number, cityHash64(number, {team_id:Int64}) AS hash, intDiv(hash, 1048576) % 5 AS kind,
               multiIf(intDiv(hash, 256) % 1000 >= {complex_per_mille:UInt16}, [(number, 1, 0)],
                       kind = 0, [(number, 1, 0), (number + 1000000007, 1, 1)],
                       kind = 1, [(number, 1, 0), (number, -1, 1), (number + 1000000007, 1, 1)],
                       kind = 2, [(number, 1, 0), (number, 1, 0)],
                       kind = 3, [(number, 1, 0), (number, -1, 1)],
                       [(number, 1, 0), (number, -1, 1), (number, 1, 2)]) AS events
        FROM numbers({first:UInt64}, {ids:UInt64})
    )
    ARRAY JOIN events AS event
)
SETTINGS optimize_on_insert = 0, max_insert_threads = 1, max_threads = 1, min_insert_block_size_bytes = 0,
         min_insert_block_size_rows = 100000000
"""


def seed(client: Client, rows: int, complex_percent: float) -> int:
    """Fills the old table with about so many rows; returns how many. Each part has ids of the whole range."""
    client.command("ALTER TABLE person_distinct_id MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 1")
    ids = round(rows / (1 + complex_percent / 100 * 1.2))
    for part in range(PARTS):
        chunk = {"first": ids * part // PARTS, "ids": ids // PARTS}
        client.command(SEED, {"team_id": TEAM, "complex_per_mille": round(complex_percent * 10), **chunk})
    return client.query("SELECT count() FROM person_distinct_id").result_rows[0][0]


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)
