"""What a database says of an id that a client has made reaches logs, the ledger and the page as visible text."""

from clickhouse_connect.driver._backend.httpcommon import build_http_error
from conftest import System
from pdi2.core.engines.failures import describe
from pdi2.core.plan import mutations
from pdi2.core.state.words import quoted
from stories import ALICE, insert_new, until

HOSTILE = "x\0y\x1b[2J\x9b31m\u202ez"
"""A NUL, which Postgres refuses, two commands to a terminal, and a turn of direction."""


def test_an_error_that_quotes_a_hostile_id_is_recorded(system: System) -> None:
    """ClickHouse quotes values as they are, and the client library passes them on."""
    said = f"Code: 467. DB::Exception: Cannot parse boolean value here: '{HOSTILE}'. (CANNOT_PARSE_BOOL)"
    told = describe(build_http_error(500, "467", said, True, "http://clickhouse", False))
    ledger = system.ledger()
    ledger.create()
    ledger.plan({7: 1})

    ledger.record("task_failed", task="team.copy", error=told)
    ledger.set_failed([7], told)

    assert r"'x\x00y\x1b[2J\x9b31m\u202ez'" in ledger.team(7).error
    assert told.isprintable()


def test_a_mutation_that_fails_on_a_hostile_id_is_reported_in_visible_text(system: System) -> None:
    insert_new(system, ALICE, 1, HOSTILE)
    system.clickhouse.command(
        "ALTER TABLE person_distinct_id2 UPDATE _offset = toInt64(distinct_id) WHERE 1 SETTINGS mutations_sync = 0"
    )
    warehouse = system.warehouse()

    [problem] = until(lambda: mutations.failing(mutations.listed(warehouse)))

    assert r"\x1b[2J\x9b31m\u202ez" in problem
    assert problem.isprintable()


def test_an_id_in_a_message_is_visible_text() -> None:
    assert quoted(HOSTILE.encode()) == r'"x\u0000y\u001b[2J\x9b31m\u202ez"'
    assert quoted("Zoë 🦔".encode()) == '"Zoë 🦔"'
