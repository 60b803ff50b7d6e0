"""The migration through Airflow on Postgres as it is installed where the migration is due.

Facts about PostHog are from its branches 1.31 to 1.33 (docs/installations.md names what was read and what was run).
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from conftest import AUDIT, DATABASE_NUMBERS, System
from pdi2.core.engines import postgres, sessions
from pdi2.core.engines.failures import BusyError
from pdi2.core.plan import postgres_checks
from pdi2.core.state.ledger import Ledger
from pdi2.edge import audit, connections
from stories import (
    ALICE,
    BOB,
    TEAM,
    dump,
    enable,
    event,
    insert_new,
    insert_old,
    insert_truth,
    merge,
    migrate_together,
    refuse,
    two_ids_each,
    when_recorded,
)

from demo import postgres as embedded
from demo import schema
from demo.seed import Seeded, seed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("airflow_metadata")]


@pytest.fixture
def release() -> str:
    return "1.32"


@pytest.fixture
def seeded(system: System) -> Seeded:
    return seed(system.postgres, system.clickhouse, rows=3_000, teams=3)


@pytest.fixture
def told(failures: Callable[[], list[str]]) -> Callable[[], list[str]]:
    """The reasons for which preflight refused, line by line."""
    return lambda: [
        line
        for text in failures()
        if "PreflightError" in text
        for line in text.split("nothing was changed.\n", 1)[1].splitlines()
    ]


def connect_as(monkeypatch: pytest.MonkeyPatch, server: embedded.Postgres, database: str, **changes: Any) -> None:
    connection = server.airflow_connection(database) | changes
    monkeypatch.setenv("AIRFLOW_CONN_POSTHOG_POSTGRES", json.dumps(connection))


def migrates(system: System) -> bool:
    run = system.run()
    merge(system)
    return (run.state, system.status(), system.disagreements()) == ("success", 2, {})


def refused(system: System) -> bool:
    """Whether a run is refused at once, with nothing changed."""
    before = dump(system)
    run = system.run()
    tries = [task.try_number for task in run.get_task_instances() if task.task_id == "preflight"]
    return (run.state, tries, dump(system) == before) == ("failed", [1], True)


@pytest.fixture
def role(system: System) -> Iterator[str]:
    name = f"application_{uuid4().hex}"
    system.postgres.execute(f"CREATE ROLE {name} SUPERUSER LOGIN")
    yield name
    system.postgres.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def test_a_role_with_the_settings_of_an_application_migrates(
    system: System,
    seeded: Seeded,
    role: str,
    postgres_server: embedded.Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each limit is shorter than something that the run does: it writes an event, waits for ClickHouse within a
    transaction, and in verify waits for what is in flight. The driver cannot read German times, and the seed has ids
    in scripts that LATIN1 lacks. Airflow's hook knows the extra `cursor`."""
    limits = {"statement_timeout": "300ms", "lock_timeout": "1ms", "idle_in_transaction_session_timeout": "1ms"}
    if system.postgres.info.server_version >= 140000:
        limits["idle_session_timeout"] = "300ms"
    limits |= {"standard_conforming_strings": "off", "array_nulls": "off", "escape_string_warning": "off"}
    limits |= {"DateStyle": "German", "TimeZone": "Europe/Berlin", "client_encoding": "LATIN1"}
    for name, value in limits.items():
        system.postgres.execute(f"ALTER ROLE {role} SET {name} = '{value}'")
    when_recorded(system, "event", "true", "PERFORM pg_sleep(0.4)")
    system.postgres.execute(f"DELETE FROM posthog_persondistinctid WHERE team_id = {seeded.team_ids[0]} AND id % 7 = 0")
    connect_as(monkeypatch, postgres_server, system.database, login=role, extra={"cursor": "dictcursor"})

    run = system.run(in_flight_seconds=0.5)

    assert (run.state, system.status(), system.disagreements()) == ("success", 2, {})
    assert {task.try_number for task in run.get_task_instances()} <= {0, 1}, "nothing was tried again"


def test_a_database_whose_tables_are_all_published_migrates(system: System, seeded: Seeded) -> None:
    """As Debezium does it. Such a publication forbids updates of a table without an identity."""
    system.ledger().create()
    system.postgres.execute("ALTER TABLE pdi2_migration.finding REPLICA IDENTITY DEFAULT")  # an earlier release's
    system.postgres.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    system.postgres.execute(f"DELETE FROM posthog_persondistinctid WHERE team_id = {seeded.team_ids[0]} AND id % 7 = 0")

    assert migrates(system)


REFUSALS = {
    "an event trigger": (
        """
        CREATE TABLE awsdms_ddl_audit (tag text);
        CREATE FUNCTION awsdms_intercept_ddl() RETURNS event_trigger LANGUAGE plpgsql
        AS $$ BEGIN INSERT INTO awsdms_ddl_audit VALUES (tg_tag); END $$;
        CREATE EVENT TRIGGER awsdms_intercept_ddl ON ddl_command_end EXECUTE FUNCTION awsdms_intercept_ddl();
        REVOKE ALL ON awsdms_ddl_audit FROM application
        """,
        "permission denied for table awsdms_ddl_audit .*function awsdms_intercept_ddl()",
    ),
    "a trigger": (
        """
        CREATE FUNCTION keep_author() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RAISE 'app.author is not set'; END $$;
        CREATE TRIGGER keep_author BEFORE UPDATE ON posthog_asyncmigration
        FOR EACH ROW EXECUTE FUNCTION keep_author()
        """,
        "app.author is not set .*function keep_author()",
    ),
    "a column of a later release": (
        "TRUNCATE posthog_asyncmigration CASCADE; ALTER TABLE posthog_asyncmigration ADD parameters jsonb NOT NULL",
        'null value in column "parameters"',
    ),
}


@pytest.mark.parametrize(("made", "told_of"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_write_that_postgres_would_refuse_is_one_line_of_preflight(
    system: System,
    told: Callable[[], list[str]],
    postgres_server: embedded.Postgres,
    monkeypatch: pytest.MonkeyPatch,
    made: str,
    told_of: str,
) -> None:
    """The event trigger is that of AWS's Database Migration Service."""
    two_ids_each(system, TEAM)
    role = f"application_{uuid4().hex}"
    system.postgres.execute(
        f"CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {system.database} TO {role};"
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role};"
        f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}"
    )
    system.postgres.execute(made.replace("application", role))
    connect_as(monkeypatch, postgres_server, system.database, login=role)

    assert refused(system)
    [line] = told()
    assert re.search(f"Postgres refuses what this migration would do.*{told_of}", line)
    assert system.run(dry_run=True).state == "success", "a dry run writes nothing"
    system.postgres.execute("DROP EVENT TRIGGER IF EXISTS awsdms_intercept_ddl")
    system.postgres.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def test_a_session_has_the_limits_of_this_project(system: System) -> None:
    system.postgres.execute(f"ALTER DATABASE {system.database} SET statement_timeout = '1min'")
    system.postgres.execute(f"ALTER DATABASE {system.database} SET default_transaction_isolation = 'serializable'")
    system.postgres.execute(f"ALTER DATABASE {system.database} SET DateStyle = 'SQL, DMY'")
    system.postgres.execute(f"ALTER DATABASE {system.database} SET client_encoding = 'LATIN1'")
    system.postgres.execute(f"ALTER DATABASE {system.database} SET TimeZone = 'Europe/Berlin'")
    with sessions.begin(lambda: psycopg.connect(system.uri)) as connection:
        asked = {name: connection.execute(f"SHOW {name}").fetchone() for name in ("statement_timeout", "lock_timeout")}
        assert asked == {"statement_timeout": ("0",), "lock_timeout": ("10s",)}
        kept = "SELECT setting FROM pg_settings WHERE name LIKE 'tcp_keepalives_%' ORDER BY name"
        assert connection.execute(kept).fetchall() in ([("3",), ("60",), ("10",)], [("0",)] * 3), "0: a Unix socket"
        summer_time_begins = postgres.value(connection, "clock").replace(2027, 3, 28, 0, 59)
        assert (summer_time_begins + timedelta(minutes=2)).timestamp() - summer_time_begins.timestamp() == 120
        assert connection.execute("SELECT '長'").fetchone() == ("長",)
        assert connection.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
        for _ in range(10):
            connection.execute("SELECT %s", ["the same statement"])
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


@pytest.mark.parametrize("created", ["the ledger", "its schema"])
def test_a_ledger_of_another_role_is_one_line_of_preflight_with_what_helps(
    system: System,
    told: Callable[[], list[str]],
    postgres_server: embedded.Postgres,
    monkeypatch: pytest.MonkeyPatch,
    created: str,
) -> None:
    """As after a trial with the application's role, or where roles are made anew for each day."""
    two_ids_each(system, TEAM)
    system.ledger().create()
    if created == "its schema":
        system.postgres.execute("DROP SCHEMA pdi2_migration CASCADE; CREATE SCHEMA pdi2_migration")
    role = f"migration_{uuid4().hex}"
    system.postgres.execute(
        f"CREATE ROLE {role} LOGIN; GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role};"
        f"GRANT SELECT, INSERT, UPDATE ON {', '.join(postgres_checks.APPLICATION_COLUMNS)} TO {role}"
    )
    connect_as(monkeypatch, postgres_server, system.database, login=role)
    assert refused(system)
    [line] = told()
    assert "pdi2_migration, belongs to" in line
    system.postgres.execute(line.partition(", or ")[2].rstrip("."))
    with sessions.begin(lambda: psycopg.connect(system.uri, user=role)) as connection:
        migrate_together(system, Ledger(connection, "a run", "its role"))
    assert {team.status for team in system.teams().values()} == {"verified"}
    system.postgres.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def test_a_role_that_may_not_tell_servers_apart_is_one_line_of_preflight(system: System) -> None:
    """Each verification is marked with its server, by pg_control_system()."""
    role = f"migration_{uuid4().hex}"
    system.postgres.execute(
        f"CREATE ROLE {role} LOGIN; REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC;"
        f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role};"
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}"
    )
    with psycopg.connect(system.uri, user=role, autocommit=True) as connection:
        [line] = postgres_checks.privilege_problems(connection)
        assert "may not call pg_control_system()" in line
        system.postgres.execute(f"GRANT EXECUTE ON FUNCTION pg_control_system() TO {role}")
        assert postgres_checks.privilege_problems(connection) == []
    system.postgres.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


@pytest.mark.parametrize(("chosen", "ours"), [("off", "local"), ("local", "local"), ("remote_apply", "remote_apply")])
def test_what_is_committed_survives_a_crash_of_postgres(system: System, chosen: str, ours: str) -> None:
    """And a session waits for no standby that others of the role do not wait for."""
    system.postgres.execute(f"ALTER DATABASE {system.database} SET synchronous_commit = {chosen}")
    with sessions.begin(lambda: psycopg.connect(system.uri)) as connection:
        assert connection.execute("SHOW synchronous_commit").fetchone() == (ours,)


@pytest.mark.parametrize("what", ["ROLE", pytest.param("DATABASE", marks=pytest.mark.chaos)])
def test_read_only_transactions_are_one_line_of_preflight(
    system: System,
    seeded: Seeded,
    role: str,
    postgres_server: embedded.Postgres,
    monkeypatch: pytest.MonkeyPatch,
    told: Callable[[], list[str]],
    what: str,
) -> None:
    named = role if what == "ROLE" else system.database
    connect_as(monkeypatch, postgres_server, system.database, login=role)
    system.postgres.execute(f"ALTER {what} {named} SET default_transaction_read_only = on")

    assert refused(system)

    [line] = told()
    assert "read-only transactions (default_transaction_read_only is on)" in line
    assert system.run(dry_run=True).state == "success", "a dry run writes nothing"

    system.postgres.execute(f"ALTER {what} {named} RESET default_transaction_read_only")
    assert migrates(system)


def test_a_standby_is_one_line_of_preflight(
    system: System, seeded: Seeded, monkeypatch: pytest.MonkeyPatch, told: Callable[[], list[str]]
) -> None:
    """A server that recovers for ever, as a read replica does."""
    database = f"story_{next(DATABASE_NUMBERS)}"
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory,
        embedded.running(Path(directory) / "data") as server,
    ):
        server.create_database(database)
        with server.connect(database) as connection:
            schema.create_postgres(connection)
        server.stop()
        (Path(directory) / "data" / "standby.signal").touch()
        server.start()
        connect_as(monkeypatch, server, database)

        assert refused(system)
        assert system.run(dry_run=True).state == "success", "the plan can be had from a standby"

    [line] = told()
    assert "Postgres is a standby" in line
    assert "at the primary" in line


def test_a_logical_replica_is_one_line_of_preflight(
    system: System, seeded: Seeded, monkeypatch: pytest.MonkeyPatch, told: Callable[[], list[str]]
) -> None:
    """It is no standby and takes writes, but the application would not see them, and its rows may be out of date."""
    database, replica = (f"story_{next(DATABASE_NUMBERS)}" for _ in range(2))
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory,
        embedded.running(Path(directory) / "data") as server,
    ):
        for one in (database, replica):
            server.create_database(one)
            with server.connect(one) as connection:
                schema.create_postgres(connection)
                connection.execute("ALTER SYSTEM SET wal_level = logical")
        server.stop()
        server.start()
        with server.connect(database) as application, server.connect(replica) as connection:
            application.execute("CREATE PUBLICATION everything FOR ALL TABLES")
            application.execute("SELECT pg_create_logical_replication_slot('copied', 'pgoutput')")
            connection.execute(
                f"CREATE SUBSCRIPTION copied CONNECTION '{server.uri(database)}' PUBLICATION everything "
                "WITH (create_slot = false)"
            )
            connect_as(monkeypatch, server, replica)

            assert refused(system)
            assert system.run(dry_run=True).state == "success", "the plan can be had from a replica"
            connection.execute("CREATE ROLE reader; SET ROLE reader")
            assert len(postgres_checks.read_only(connection)) == 1
            connection.execute("RESET ROLE; ALTER SUBSCRIPTION copied DISABLE")
            assert postgres_checks.read_only(connection) == [], "left from an upgrade"

    [line] = told()
    assert "Postgres is a logical replica (the subscription copied fills posthog_persondistinctid)" in line


@pytest.mark.parametrize("opened", [connections.opened, audit.looking])
def test_no_task_works_by_what_a_standby_says(system: System, monkeypatch: pytest.MonkeyPatch, opened: Any) -> None:
    """A failover in the middle of a run makes the primary a standby, and what lags behind there would be repaired."""
    run = SimpleNamespace(dag_id=AUDIT, run_id="a run", conf={})
    context = {"dag_run": run, "params": {}, "task": SimpleNamespace()}
    monkeypatch.setattr(connections, "get_current_context", lambda: context)
    enable(system, system.ledger(f"{AUDIT} a run"))
    with opened("verify"):
        system.postgres.execute(f"ALTER DATABASE {system.database} SET default_transaction_read_only = on")

    with pytest.raises(BusyError, match=r"read-only transactions.*This task did nothing"), opened("verify"):
        pass


@pytest.mark.parametrize("release", ["1.32", "1.34"], indirect=True)
def test_a_long_reason_is_shortened_to_what_the_column_takes(system: System, seeded: Seeded, release: str) -> None:
    """The column is varchar(400) in 1.32.0, and text from 1.33 on."""
    refuse(system, "version < 0")

    assert system.run().state == "failed"

    assert system.status() == 3
    reason = system.value("SELECT description FROM posthog_asyncmigrationerror")
    assert "3 of 3 teams are not verified" in reason
    assert (len(reason), reason.endswith(" ...")) == (400, True) if release == "1.32" else len(reason) > 400


def test_a_run_whose_row_somebody_else_completed_never_reports_completed(system: System, seeded: Seeded) -> None:
    """PostHog's runner completes the row if is_required() turns false, and after Resume on its page."""
    complete = "UPDATE posthog_asyncmigration SET status = 2, progress = 100, finished_at = now()"
    when_recorded(system, "event", "NEW.what = 'certified'", complete)

    run = system.run()

    assert run.state == "failed"
    red = [(task.task_id, task.try_number) for task in run.get_task_instances() if task.state == "failed"]
    assert red == [("switch_reads", 1)]
    assert system.ledger().current_run().outcome == "failed"
    assert system.ledger().latest("report")["outcome"] == "failed"
    assert system.ledger().latest("reads_switched") is None
    assert "completed by somebody else" in system.ledger().latest("task_failed")["error"]
    assert system.status() == 2, "somebody else's status stays"
    assert system.run().state == "success", "there is nothing to migrate, and preflight says: run the audit"
    assert system.run(AUDIT).state == "success"


def test_copies_of_posthogs_own_runner_are_right_beside_ours(system: System) -> None:
    """PostHog's statement writes version 0 and the time 0 for each id that its rule takes for alive. It may have
    stopped anywhere, and left right rows, wrong rows, and rows of ids that are dead by now."""
    links = {
        "both agree": ["+A1"],
        "moved since, and versioned": ["+A1", "-A2", "+B2"],
        "moved since, and its version is null": ["+A1", "-A2", "+B2"],
        "its rule is wrong": ["+A1", "+B1.2"],
        "deleted since": ["+A1"],
        "never copied by it": ["+A1"],
    }
    for distinct_id, events in links.items():
        insert_old(system, [event(one, distinct_id) for one in events])
    persons = dict.fromkeys(links, ALICE) | {"its rule is wrong": BOB}
    del persons["never copied by it"]
    for distinct_id, person in persons.items():
        insert_new(system, person, 0, distinct_id)
    insert_new(system, BOB, 1, "moved since, and versioned")
    for distinct_id, person, version in [
        ("both agree", ALICE, 0),
        ("moved since, and versioned", BOB, 1),
        ("moved since, and its version is null", BOB, None),
        ("its rule is wrong", ALICE, 0),
        ("never copied by it", ALICE, 0),
    ]:
        insert_truth(system, person, version, distinct_id)

    assert system.run().state == "success"

    assert system.disagreements() == {}
    merge(system)
    assert system.disagreements() == {}
    assert system.teams()[TEAM].status == "verified"
