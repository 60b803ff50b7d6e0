"""A pooler between the migration and Postgres, as PostHog's Helm chart puts one there (PgBouncer, port 6543)."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pooler
import psycopg
import pytest
from conftest import ROLLBACK, System
from pdi2.core.engines import sessions
from pdi2.core.engines.failures import Reaction, reaction
from stories import dump

from demo import postgres as embedded
from demo.seed import Seeded, seed

pytestmark = [pytest.mark.pooler, pytest.mark.usefixtures("airflow_metadata")]

POOLS: dict[str, dict[str, Any]] = {
    "transaction": {"mode": "transaction"},
    "transaction, one server session": {"mode": "transaction", "default_pool_size": 1},
    "transaction, in turn": {"mode": "transaction", "server_round_robin": 1},
    "statement": {"mode": "statement"},
}


@pytest.fixture
def release() -> str:
    return "1.32"


@pytest.fixture
def seeded(system: System) -> Seeded:
    return seed(system.postgres, system.clickhouse, rows=3_000, teams=3)


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Points Airflow's connection at another address."""

    def lead(**changes: Any) -> None:
        connection = {"conn_type": "postgres", "login": "postgres"} | changes
        monkeypatch.setenv("AIRFLOW_CONN_POSTHOG_POSTGRES", json.dumps(connection))

    return lead


def locks(system: System) -> int:
    return system.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")


def test_a_pool_that_shares_sessions_is_one_line_of_preflight(
    system: System,
    seeded: Seeded,
    postgres_server: embedded.Postgres,
    through: Callable[..., None],
    failures: Callable[[], list[str]],
) -> None:
    before = dump(system)
    with pooler.running(postgres_server, "transaction") as port:
        address = {"host": "127.0.0.1", "port": port}
        through(schema=system.database, **address)

        run = system.run()

        assert run.state == "failed"
        [error] = [one for one in failures() if "PreflightError" in one]
        assert "The migration cannot begin, for 1 reason;" in error
        line = error.split("nothing was changed.\n", 1)[1].strip()
        assert len(line.splitlines()) == 1
        assert "connection pooler (such as PgBouncer) in transaction mode" in line
        assert "its own port, usually 5432" in line
        assert [task.try_number for task in run.get_task_instances() if task.task_id == "preflight"] == [1]
        assert dump(system) == before
        assert locks(system) == 0
        with psycopg.connect(user="postgres", dbname=system.database, autocommit=True, **address) as application:
            assert application.execute("SHOW lock_timeout").fetchone() == ("0",), "the pool's sessions are as they were"

        through(schema=system.database, host=postgres_server.host)
        assert system.run().state == "success"


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS.keys())
@pytest.mark.parametrize("sessions_open", [0, 1, 2, 3, 4])
def test_a_pool_that_shares_sessions_is_recognised(
    system: System, postgres_server: embedded.Postgres, pool: dict[str, Any], sessions_open: int
) -> None:
    """The pool may be new, or others may have used it before and left several sessions in it."""
    with pooler.running(postgres_server, **pool) as port:
        address = {"host": "127.0.0.1", "port": port}
        open_sessions(system, address, sessions_open)
        with pytest.raises(sessions.PoolerError, match="in transaction mode.*at Postgres itself.*in session mode"):
            sessions.begin(lambda: psycopg.connect(user="postgres", dbname=system.database, **address))


def open_sessions(system: System, address: dict[str, Any], count: int) -> None:
    """Others use the pool at the same time, so that it opens this many sessions. Then they rest."""
    with ExitStack() as stack:
        others = [
            stack.enter_context(psycopg.connect(user="postgres", dbname=system.database, autocommit=True, **address))
            for _ in range(count)
        ]
        waiting = [other.pgconn for other in others]
        for one in waiting:
            one.send_query(b"SELECT pg_sleep(0.2)")
        for one in waiting:
            while one.get_result():
                pass


def test_a_rollback_through_a_transaction_pool_is_refused(
    system: System,
    seeded: Seeded,
    postgres_server: embedded.Postgres,
    through: Callable[..., None],
    failures: Callable[[], list[str]],
) -> None:
    with pooler.running(postgres_server, "transaction") as port:
        through(schema=system.database, host="127.0.0.1", port=port)
        run = system.run(ROLLBACK)

    assert run.state == "failed"
    assert any("PoolerError" in one and "in transaction mode" in one for one in failures())


def test_a_pool_in_session_mode_migrates(
    system: System,
    seeded: Seeded,
    postgres_server: embedded.Postgres,
    through: Callable[..., None],
) -> None:
    with pooler.running(postgres_server, "session") as port:
        through(schema=system.database, host="127.0.0.1", port=port)

        assert system.run().state == "success"

        assert (system.status(), system.disagreements()) == (2, {})
        assert locks(system) == 0


@pytest.mark.parametrize("query", ["", "RESET ALL"])
def test_a_pool_that_passes_on_locks_is_refused_with_nothing_set(
    system: System, postgres_server: embedded.Postgres, query: str
) -> None:
    with pooler.running(postgres_server, "session", server_reset_query=query) as port:
        connect = lambda: psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname=system.database)  # noqa: E731
        for _ in range(2):
            with pytest.raises(sessions.PoolerError, match="server_reset_query to DISCARD ALL") as refused:
                sessions.begin(connect)
            assert reaction(refused.value) is Reaction.FAIL
        with connect() as one, connect() as another:
            for application in (one, another):
                assert application.execute("SHOW lock_timeout").fetchone() == ("0",)


def test_a_pool_that_has_no_second_session_says_so_within_seconds(
    system: System, postgres_server: embedded.Postgres
) -> None:
    with pooler.running(postgres_server, "session", default_pool_size=1) as port:
        connect = lambda: psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname=system.database)  # noqa: E731
        with pytest.raises(sessions.PoolerError, match="gave no second session within 5 s.*at Postgres itself") as full:
            sessions.begin(connect)
    assert reaction(full.value) is Reaction.RETRY, "where it is only busy, it has one soon"
    assert locks(system) == 0


def test_direct_connections_are_not_taken_for_a_pool(system: System) -> None:
    with sessions.begin(lambda: psycopg.connect(system.uri)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
