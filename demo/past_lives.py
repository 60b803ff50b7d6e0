"""Ids that were deleted without telling ClickHouse, as PostHog 1.31 to 1.33 delete them (tombstones came in mid-2022).

A reader of such an id may go on seeing its earlier person: in the old table for ever, in the new table until a
verification or an audit that began after the deletion. The same holds if the id comes back at version 0, below the rows
that are left of its past. That is PostHog's fault, so the demo's reader must not blame the migration. The writers note
each such deletion here, in the transaction that deletes; PostHog has no such table.
"""

from uuid import UUID

import psycopg

from demo.writer import Change


def prepare(postgres: psycopg.Connection) -> None:
    """Create the table if it is missing; several processes may call this at once."""
    with postgres.transaction():
        postgres.execute("SELECT pg_advisory_xact_lock(hashtext('demo_past_life'))")
        postgres.execute(
            "CREATE TABLE IF NOT EXISTS demo_past_life "
            "(team_id bigint, distinct_id text, person uuid, PRIMARY KEY (team_id, distinct_id, person))"
        )


def note(postgres: psycopg.Connection, changes: list[Change]) -> None:
    """Note the silent deletions among the changes, in the transaction that is open."""
    for change in changes:
        if change.silent:
            postgres.execute(
                "INSERT INTO demo_past_life VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                [change.team_id, change.distinct_id, change.unlinked],
            )


def persons_of(postgres: psycopg.Connection, team_id: int, distinct_id: str) -> set[UUID]:
    """The persons that a reader may see although Postgres has forgotten them."""
    query = "SELECT person FROM demo_past_life WHERE team_id = %s AND distinct_id = %s"
    return {person for (person,) in postgres.execute(query, [team_id, distinct_id])}
