"""If the server is busy, the copy gives up, waits, shrinks and goes on, and it repeats nothing."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count
from pathlib import Path

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from conftest import System
from pdi2.core.cluster import pressure
from pdi2.core.copy.copying import copy_team
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import BusyError, Reaction, reaction
from pdi2.core.engines.statement_settings import THREADS
from pdi2.core.state.ledger import Ledger
from stories import until

from demo import clickhouse_server, schema
from demo.reader import team_in, truth_of
from demo.seed import RARE_IDS, seed

MEMORY = 200_000_000
TOTAL = "DB::Exception: (total) memory limit exceeded: would use 21.20 GiB"


@pytest.fixture
def ledger(system: System) -> Ledger:
    ledger = system.ledger()
    ledger.create()
    return ledger


@pytest.fixture
def server(tmp_path: Path) -> Iterator[clickhouse_server.Server]:
    with clickhouse_server.running(tmp_path, faults_token="for tests") as server:
        yield server


@pytest.mark.slow
def test_a_server_limit_ends_two_tries_and_the_third_completes(
    system: System, ledger: Ledger, server: clickhouse_server.Server
) -> None:
    with server.connect() as clickhouse:
        schema.create_clickhouse(clickhouse)
        team_id = seed(system.postgres, clickhouse, rows=40_000, teams=4).team_ids[0]
        [[rows]] = clickhouse.query(f"SELECT count() FROM person_distinct_id WHERE team_id = {team_id}").result_rows
        ledger.plan({team_id: rows})
        ledger.remember_range_rows(team_id, 1_000)
        fault = {"match": "INSERT INTO person_distinct_id2", "action": "error", "code": 241, "text": TOTAL}
        copied: list[tuple[bytes, object]] = []
        for budget in ("100 MB instead of 200 MB", "50 MB instead of 100 MB"):
            server.inject(fault | {"skip": 11, "times": 1})
            with (
                Warehouse(server.connect, f"team {team_id}", MEMORY) as warehouse,
                pytest.raises(BusyError) as given_up,
            ):
                copy_team(ledger, warehouse, team_id)
            told = str(given_up.value)
            assert f"slice of team {team_id}" in told
            assert "ClickHouse error 241" in told
            assert "(total) memory limit" in told
            assert budget in told
            before, copied = copied, finished(system)
            assert copied[: len(before)] == before
            assert len(copied) > len(before)
        with Warehouse(server.connect, f"team {team_id}", MEMORY) as warehouse:
            copy_team(ledger, warehouse, team_id)
            assert warehouse.max_memory_usage == MEMORY // 4

        assert finished(system)[: len(copied)] == copied, "no slice is copied twice"
        team = ledger.team(team_id)
        assert (team.status, team.attempts) == ("copied", 3)
        seen = team_in(clickhouse, schema.Table.NEW, team_id)
        truth = truth_of(system.postgres, team_id)
        assert len(seen.keys() ^ truth.keys()) < RARE_IDS, "but for what the seed hides from any copy"


def finished(system: System) -> list[tuple[bytes, object]]:
    return system.postgres.execute("SELECT lower, finished_at FROM pdi2_migration.slice ORDER BY lower").fetchall()


def test_too_many_parts_are_waited_for_and_the_ledger_says_so(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pressure, "LOOK_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(pressure, "WAIT_IN_SLOT_SECONDS", 0.2)
    system.clickhouse.command("ALTER TABLE person_distinct_id2 MODIFY SETTING parts_to_delay_insert = 1")
    system.clickhouse.command("INSERT INTO person_distinct_id2 (team_id, distinct_id) VALUES (1, 'a')")

    with pytest.raises(BusyError, match="team 1 has waited for .* 1 part in a partition, and from 1 on inserts"):
        pressure.wait_while_busy(ledger, system.warehouse(), [1])
    waits = ledger.latest("copy_waits")
    assert waits is not None
    assert waits["team_id"] == 1

    system.clickhouse.command("ALTER TABLE person_distinct_id2 MODIFY SETTING parts_to_delay_insert = 1000")
    pressure.wait_while_busy(ledger, system.warehouse(), [1])
    assert ledger.latest("copy_goes_on") is None


def test_the_cores_of_a_server_do_not_decide_how_much_memory_a_statement_takes(system: System) -> None:
    with system.client() as client:
        client.set_client_setting("max_threads", 64)
        Warehouse(lambda: client, "many cores", MEMORY).command(
            "INSERT INTO person_distinct_id2 (team_id, distinct_id) SELECT getSetting('max_threads'), 'threads'"
        )
    assert system.clickhouse.query("SELECT team_id FROM person_distinct_id2").result_rows == [(THREADS,)]


def test_a_killed_task_leaves_no_statement_behind(system: System) -> None:
    warehouse = system.warehouse("team 1")
    killed: list[DatabaseError] = []

    def work() -> None:
        try:
            warehouse.command("INSERT INTO person_distinct_id2 (team_id) SELECT sleepEachRow(0.1) FROM numbers(3000)",
                              settings={"max_block_size": 1})  # fmt: skip
        except DatabaseError as error:
            killed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    running = "SELECT count() FROM system.processes WHERE query LIKE 'INSERT INTO person_distinct_id2%'"
    until(lambda: system.clickhouse.query(running).result_rows == [(1,)])
    warehouse.kill()
    thread.join(timeout=120)

    assert [error.name for error in killed] == ["QUERY_WAS_CANCELLED"]
    assert system.clickhouse.query(running).result_rows == [(0,)]


def test_a_session_that_is_taken_is_given_up(server: clickhouse_server.Server) -> None:
    """As after a connection that was reset: the client sends its SELECT again, and the first one is still running."""
    sessions = chain(["taken"], map(str, count()))
    with (
        Warehouse(lambda: server.connect(session_id=next(sessions)), "test", MEMORY) as warehouse,
        server.connect(session_id="taken") as another,
        ThreadPoolExecutor(1) as pool,
    ):
        assert warehouse.rows("now")
        endless = "SELECT sum(sleepEachRow(0.1)) FROM numbers(3000) SETTINGS max_block_size = 1, log_comment = 'slow'"
        slow = pool.submit(another.query, endless)
        with server.connect() as onlooker:
            running = "SELECT count() FROM system.processes WHERE Settings['log_comment'] = 'slow'"
            until(lambda: onlooker.command(running) == 1)
            with pytest.raises(DatabaseError) as taken:
                warehouse.rows("now")
            assert (taken.value.code, reaction(taken.value)) == (373, Reaction.RETRY)
            assert warehouse.rows("now"), "by a new session"
            assert onlooker.command(running) == 1
            onlooker.command("KILL QUERY WHERE Settings['log_comment'] = 'slow'")
        with pytest.raises(DatabaseError, match="QUERY_WAS_CANCELLED"):
            slow.result()
