"""A ledger that an earlier release of this package created, and a role that did not create the ledger's schema."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from conftest import System
from pdi2.core.state.ledger import Ledger
from stories import ALICE, BOB, dump, insert_new, insert_truth, migrate

FINDING_OF_0_1 = """
    DROP TABLE pdi2_migration.finding;
    CREATE TABLE pdi2_migration.finding (
        team_id bigint NOT NULL,
        distinct_id text NOT NULL,
        kind text NOT NULL CHECK (kind IN ('missing', 'stale', 'wrong_person', 'resurrected', 'ahead')),
        repaired boolean NOT NULL,
        found_at timestamptz NOT NULL DEFAULT now(),
        clickhouse jsonb,
        postgres jsonb
    );
    CREATE UNIQUE INDEX finding_identity ON pdi2_migration.finding (team_id, md5(distinct_id), kind);
    INSERT INTO pdi2_migration.finding VALUES (6, 'an old finding', 'missing', true)
"""


def test_two_that_create_the_ledger_at_the_same_time_take_turns(system: System) -> None:
    """As the first run and an audit of the same minute."""
    ledgers = [system.ledger(), system.ledger()]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            system.postgres.execute("DROP SCHEMA IF EXISTS pdi2_migration CASCADE")
            assert list(pool.map(Ledger.create, ledgers)) == [None, None]
    assert system.ledger().exists()


def test_a_ledger_of_an_earlier_release_is_kept_and_gets_what_it_lacks(system: System) -> None:
    system.ledger().create()
    system.postgres.execute(FINDING_OF_0_1)
    insert_truth(system, ALICE, 1)
    insert_new(system, BOB, 0)

    migrate(system, system.ledger())

    rows = system.postgres.execute(
        "SELECT distinct_id, repaired, action, written ->> 'version' FROM pdi2_migration.finding ORDER BY team_id"
    ).fetchall()
    assert rows == [("an old finding", True, None, None), ("id", True, "inserted", "1")]


FINDING_OF_0_2 = """
    DROP INDEX IF EXISTS pdi2_migration.finding_identity_by_id, pdi2_migration.finding_identity_by_hash;
    CREATE UNIQUE INDEX finding_identity_by_hash
        ON pdi2_migration.finding (team_id, hashtextextended(distinct_id, 0), kind)
"""


def test_two_ids_whose_hashes_were_made_to_collide_are_two_findings(system: System) -> None:
    ids = ["riGp_58WAm-dwA8MXc2fKf_y-example.com", "FfJf-lC3oc2gc2MvCh6#`L-$-example.com"]
    hashes = "SELECT count(DISTINCT hashtextextended(id, 0)) FROM unnest(%s::text[]) AS given (id)"
    assert system.postgres.execute(hashes, [ids]).fetchone() == (1,)
    system.ledger().create()
    system.postgres.execute(FINDING_OF_0_2)
    for distinct_id in [*ids, "😀" * 400]:
        insert_truth(system, ALICE, 1, distinct_id)

    migrate(system, system.ledger())

    found = system.postgres.execute("SELECT distinct_id FROM pdi2_migration.finding WHERE repaired").fetchall()
    assert {distinct_id for (distinct_id,) in found} == {*ids, "😀" * 400}


def test_a_ledger_that_is_current_is_left_alone(system: System) -> None:
    ledger = system.ledger()
    ledger.create()
    before = dump(system)
    ledger.create()
    assert dump(system) == before


@pytest.fixture
def guest(system: System) -> Iterator[Ledger]:
    """A role that may use the schema that was created for it, but may create none."""
    system.postgres.execute("DROP ROLE IF EXISTS guest")
    system.postgres.execute("CREATE ROLE guest LOGIN")
    system.postgres.execute("CREATE SCHEMA pdi2_migration")
    system.postgres.execute("GRANT CREATE, USAGE ON SCHEMA pdi2_migration TO guest")
    with psycopg.connect(system.uri, user="guest", autocommit=True) as connection:
        yield Ledger(connection, "a run", "a test")
    system.postgres.execute("DROP OWNED BY guest")
    system.postgres.execute("DROP ROLE guest")


def test_a_schema_that_was_made_for_the_role_will_do(guest: Ledger) -> None:
    guest.create()
    assert guest.exists()
