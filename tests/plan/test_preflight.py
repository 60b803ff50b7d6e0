"""What must hold before a migration may begin. Preflight names every reason against it at once, and changes nothing."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from conftest import System
from pdi2.core.engines import postgres
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import BusyError, Reaction, reaction
from pdi2.core.plan import clickhouse_checks
from pdi2.core.plan.postgres_checks import APPLICATION_COLUMNS, PRIVILEGES, SETTING_COLUMNS
from pdi2.core.plan.preflight import Preflight, PreflightError, Verdict, check
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.ownership import hold
from pdi2.core.state.settings import AUDIT_SCHEMA, SCHEMA, Settings, SettingsError
from pdi2.core.switch.gate import certify, switch_reads
from stories import (
    ALICE,
    BOB,
    NO_WAIT,
    TEAM,
    dump,
    enable,
    end_session,
    event,
    insert_old,
    insert_truth,
    migrate,
    plan,
    two_ids_each,
)

from demo import schema
from demo.postgres import Postgres
from demo.switches import WRITES, set_switch

WITH_AND_WITHOUT_SETTINGS = pytest.mark.parametrize("release", ["1.32", "1.34"], indirect=True)


def look(
    system: System, settings: Settings | None = None, found: list[str] | None = None, ledger: Ledger | None = None
) -> Preflight:
    return check(ledger or system.ledger(), system.warehouse(), settings or Settings(), found or [])


def problems_of(
    system: System, settings: Settings | None = None, found: list[str] | None = None, ledger: Ledger | None = None
) -> list[str]:
    """Returns why the migration may not begin, and checks that asking changes neither database."""
    before = dump(system)
    with pytest.raises(PreflightError) as refused:
        look(system, settings, found, ledger)
    assert dump(system) == before
    assert reaction(refused.value) is Reaction.FAIL
    for problem in refused.value.problems:
        assert problem in str(refused.value)
        assert re.fullmatch(r"\S.*[.] .*[.]", problem, re.DOTALL), f"no sentence and next step: {problem!r}"
    return refused.value.problems


def test_what_earlier_runs_copied_needs_no_room_again(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    two_ids_each(system, TEAM, TEAM + 1)
    copied: list[int] = []
    monkeypatch.setattr(clickhouse_checks, "disk_problems", lambda _, rows: copied.append(rows) or [])
    look(system)
    migrate(system, system.ledger())
    look(system)
    assert copied == [0, 4]


def set_row(system: System, status: int) -> None:
    system.postgres.execute("UPDATE posthog_asyncmigration SET status = %s", [status])


def test_a_sound_system_may_begin_and_nothing_changes(system: System) -> None:
    insert_old(system, [event("+A1")])
    insert_truth(system, ALICE)
    before = dump(system)
    assert look(system).verdict is Verdict.MIGRATE
    assert look(system, Settings(dry_run=True)).verdict is Verdict.PLAN_ONLY
    assert look(system, Settings(team_ids=(TEAM,))).verdict is Verdict.MIGRATE
    assert dump(system) == before


CLICKHOUSE_FAULTS = {
    "no old table": (["DROP TABLE person_distinct_id"], "has no table person_distinct_id. Point"),
    "no new table": (["DROP TABLE person_distinct_id2"], "has no table person_distinct_id2. Point"),
    "old engine": (
        [
            "DROP TABLE person_distinct_id",
            schema.sql("person_distinct_id").replace("CollapsingMergeTree(_sign)", "MergeTree"),
        ],
        "person_distinct_id has the engine MergeTree, not CollapsingMergeTree",
    ),
    "new engine": (
        [
            "DROP TABLE person_distinct_id2",
            schema.sql("person_distinct_id2_later").replace(
                "ReplacingMergeTree(version)", "CollapsingMergeTree(is_deleted)"
            ),
        ],
        "person_distinct_id2 has the engine CollapsingMergeTree, not ReplacingMergeTree",
    ),
    "new engine without version": (
        [
            "DROP TABLE person_distinct_id2",
            schema.sql("person_distinct_id2").replace("ReplacingMergeTree(version)", "ReplacingMergeTree"),
        ],
        "person_distinct_id2 has the engine ReplacingMergeTree, not ReplacingMergeTree(version)",
    ),
    "a view": (
        [
            "RENAME TABLE person_distinct_id2 TO sharded_person_distinct_id2",
            "CREATE VIEW person_distinct_id2 AS SELECT * FROM sharded_person_distinct_id2",
        ],
        "person_distinct_id2 has the engine View, not ReplacingMergeTree",
    ),
    "old sort key": (
        [
            "DROP TABLE person_distinct_id",
            schema.sql("person_distinct_id").replace("distinct_id, person_id)", "distinct_id)"),
        ],
        "person_distinct_id is sorted by (team_id, distinct_id), not (team_id, distinct_id, person_id)",
    ),
    "new sort key": (
        [
            "DROP TABLE person_distinct_id2",
            schema.sql("person_distinct_id2").replace("(team_id, distinct_id)", "(distinct_id, team_id)"),
        ],
        "person_distinct_id2 is sorted by (distinct_id, team_id), not (team_id, distinct_id)",
    ),
    "missing column": (
        ["ALTER TABLE person_distinct_id2 DROP COLUMN _partition"],
        "Column _partition of ClickHouse table person_distinct_id2 is missing; it should be UInt64",
    ),
    "wrong column": (
        ["ALTER TABLE person_distinct_id MODIFY COLUMN _offset String"],
        "Column _offset of ClickHouse table person_distinct_id is String, not UInt64",
    ),
    "finer times": (  # a repair would be stamped in 1970
        ["ALTER TABLE person_distinct_id2 MODIFY COLUMN _timestamp DateTime64(3)"],
        "Column _timestamp of ClickHouse table person_distinct_id2 is DateTime64(3), not DateTime",
    ),
    "nullable column": (
        ["ALTER TABLE person_distinct_id MODIFY COLUMN _timestamp Nullable(DateTime)"],
        "Column _timestamp of ClickHouse table person_distinct_id is Nullable(DateTime), not DateTime",
    ),
}


@pytest.mark.parametrize(("statements", "told"), CLICKHOUSE_FAULTS.values(), ids=CLICKHOUSE_FAULTS.keys())
def test_a_fault_of_clickhouse_is_reported(system: System, statements: list[str], told: str) -> None:
    for statement in statements:
        system.clickhouse.command(statement)
    [problem] = problems_of(system)
    assert told in problem


NEW = "ALTER TABLE person_distinct_id2"
DELETES = "has a TTL that deletes rows"


def test_times_in_a_zone_of_their_own_are_as_good(system: System) -> None:
    for table in schema.Table:
        system.clickhouse.command(f"ALTER TABLE {table} MODIFY COLUMN _timestamp DateTime('Europe/Berlin')")
    assert look(system).verdict is Verdict.MIGRATE


class Ungranted(Warehouse):
    """ClickHouse's server shows few system tables without a grant (select_from_system_db_requires_grant, which its own
    config.xml sets). The embedded engine shows them to everybody, so the refusal is the server's in words alone."""

    def rows(self, name: str, *arguments: Any) -> list[tuple[Any, ...]]:
        if name == "pressure":  # it reads system.metrics
            raise DatabaseError("Not enough privileges: SELECT(value, metric) ON system.metrics", code=497)
        return super().rows(name, *arguments)


def test_a_system_table_that_was_not_granted_is_reported_with_what_else_is_wrong(system: System) -> None:
    two_ids_each(system, TEAM)
    with (
        Ungranted(system.client, "preflight", Settings().max_memory_usage) as warehouse,
        pytest.raises(PreflightError) as told,
    ):
        check(system.ledger(), warehouse, Settings(team_ids=(99,)), [])
    of_team, ungranted = told.value.problems
    assert "team 99" in of_team
    assert "SELECT(value, metric) ON system.metrics" in ungranted
    assert "Grant what docs/runbook.md lists." in ungranted


TTLS = {
    "deletes": (f"{NEW} MODIFY TTL _timestamp + INTERVAL 90 DAY", DELETES),
    "deletes, in words": (f"{NEW} MODIFY TTL toDate(_timestamp) + INTERVAL 1 YEAR DELETE", DELETES),
    "deletes some": (f"{NEW} MODIFY TTL _timestamp + INTERVAL 9 DAY DELETE WHERE distinct_id = ' TO DISK '", DELETES),
    "keeps one": (
        f"{NEW} MODIFY TTL _timestamp + INTERVAL 9 DAY GROUP BY team_id SET distinct_id = max(distinct_id)",
        DELETES,
    ),
    "recompresses, then deletes": (
        f"{NEW} MODIFY TTL _timestamp + INTERVAL 1 DAY RECOMPRESS CODEC(ZSTD(9)), _timestamp + INTERVAL 9 DAY",
        DELETES,
    ),
    "moves and recompresses": (
        f"{NEW} MODIFY TTL _timestamp + INTERVAL 1 DAY TO DISK 'default', "
        "_timestamp + INTERVAL 9 DAY RECOMPRESS CODEC(Delta(4), ZSTD(9))",
        None,
    ),
    "resets a value": (
        f"{NEW} MODIFY COLUMN _offset UInt64 TTL _timestamp + INTERVAL 9 DAY",
        "TTL of column _offset of ClickHouse table person_distinct_id2 resets values",
    ),
    "only says so": (f"{NEW} MODIFY COLUMN _offset UInt64 COMMENT 'no TTL here '", None),
    "of the old table": ("ALTER TABLE person_distinct_id MODIFY TTL _timestamp + INTERVAL 90 DAY", None),
}


@pytest.mark.parametrize(("statement", "told"), TTLS.values(), ids=TTLS.keys())
def test_a_ttl_that_would_delete_copied_rows_is_reported(system: System, statement: str, told: str | None) -> None:
    system.clickhouse.command(statement)
    if told is None:
        assert look(system).verdict is Verdict.MIGRATE
        return
    [problem] = problems_of(system)
    assert told in problem


POSTGRES_FAULTS = {
    "no mapping": (
        ["DROP TABLE posthog_persondistinctid"],
        "Postgres has no table posthog_persondistinctid, or only a view or a foreign table. Point the connection",
    ),
    "a view of the mapping": (
        [
            "ALTER TABLE posthog_persondistinctid RENAME TO mapping",
            "CREATE VIEW posthog_persondistinctid AS SELECT * FROM mapping",
        ],
        "Postgres has no table posthog_persondistinctid, or only a view",
    ),
    "no migration table": (
        ["DROP TABLE posthog_asyncmigration CASCADE"],
        "Postgres has no table posthog_asyncmigration, or",
    ),
    "no error table": (
        ["DROP TABLE posthog_asyncmigrationerror"],
        "Postgres has no table posthog_asyncmigrationerror, or",
    ),
    "no version": (
        ["ALTER TABLE posthog_persondistinctid DROP COLUMN version"],
        "Postgres table posthog_persondistinctid has no column version. Upgrade PostHog",
    ),
    "no uuid": (
        ["ALTER TABLE posthog_person DROP COLUMN uuid"],
        "Postgres table posthog_person has no column uuid. Upgrade PostHog",
    ),
    "a person's uuid as text": (
        ["ALTER TABLE posthog_person ALTER uuid TYPE varchar(36)"],
        "would do, as a trial that was taken back has shown: function uuid_send(character varying) does not exist",
    ),
    "tombstones": (
        ["ALTER TABLE posthog_persondistinctid ADD COLUMN is_deleted boolean NOT NULL DEFAULT false"],
        "Postgres table posthog_persondistinctid has a column is_deleted: this PostHog keeps deleted rows",
    ),
    "no setting value": (
        ["ALTER TABLE posthog_instancesetting DROP COLUMN raw_value"],
        "Postgres table posthog_instancesetting has no column raw_value. Upgrade PostHog",
    ),
    "a setting without quotes": (
        ["UPDATE posthog_instancesetting SET raw_value = 'both' WHERE key LIKE '%WRITES'"],
        'is no JSON: Token "both" is invalid. PostHog cannot read it either',
    ),
    "running": (["UPDATE posthog_asyncmigration SET status = 1"], "PostHog's own runner is running"),
    "starting": (
        ["UPDATE posthog_asyncmigration SET status = 5"],
        "set the row's status to 4 (rolled back",
    ),
    "new writes": (
        ["""UPDATE posthog_instancesetting SET raw_value = '"new"' WHERE key LIKE '%WRITES'"""],
        "already writes the new table only",
    ),
}


@pytest.mark.parametrize(("statements", "told"), POSTGRES_FAULTS.values(), ids=POSTGRES_FAULTS.keys())
def test_a_fault_of_postgres_is_reported(system: System, statements: list[str], told: str) -> None:
    for statement in statements:
        system.postgres.execute(statement.encode())
    [problem] = problems_of(system)
    assert told in problem


def test_a_row_that_somebody_else_set_starting_after_our_failed_run_is_reported(system: System) -> None:
    ledger = system.ledger("an earlier run")
    enable(system, ledger)
    set_row(system, 3)
    ledger.end_run("failed")
    set_row(system, 5)
    [problem] = problems_of(system)
    assert "the ledger has no run that left it so" in problem


def test_a_ledger_that_is_lost_is_not_told_as_the_work_of_somebody_else(system: System) -> None:
    """As where Postgres was restored without the schema pdi2_migration."""
    enable(system, system.ledger())
    system.postgres.execute("DROP SCHEMA pdi2_migration CASCADE")
    [problem] = problems_of(system)
    assert "or the ledger is lost" in problem

    system.postgres.execute(COMPLETE)
    assert "or the ledger of our switch is lost" in look(system).message


def test_all_problems_are_reported_at_once(system: System) -> None:
    system.clickhouse.command("DROP TABLE person_distinct_id")
    system.clickhouse.command("ALTER TABLE person_distinct_id2 DROP COLUMN _partition")
    system.clickhouse.command("ALTER TABLE person_distinct_id2 MODIFY COLUMN _offset Int32")
    system.postgres.execute("DROP TABLE posthog_asyncmigrationerror")
    system.postgres.execute("ALTER TABLE posthog_person DROP COLUMN uuid")

    problems = problems_of(system, found=["ClickHouse is asleep. Wake it up."])

    assert len(problems) == 6
    for told in ["asleep", "no table person_distinct_id.", "_partition", "_offset", "asyncmigrationerror", "uuid"]:
        assert any(told in problem for problem in problems), told


def test_problems_of_the_data_and_of_the_switch_are_reported_together(system: System) -> None:
    insert_old(system, [event("+A1")])
    set_row(system, 1)
    set_switch(system.postgres, WRITES, "new")
    problems = problems_of(system, Settings(team_ids=(TEAM, 404, 405)))
    assert len(problems) == 4
    assert ["404" in problems[0], "405" in problems[1]] == [True, True]


def test_an_unreachable_database_does_not_hide_the_other_ones_problems(system: System) -> None:
    system.postgres.execute("DROP TABLE posthog_asyncmigrationerror")
    system.clickhouse.command("DROP TABLE person_distinct_id2")
    away = "It is away. Bring it back."
    with pytest.raises(PreflightError) as no_clickhouse:
        check(system.ledger(), None, Settings(), [away])
    assert [away, "posthog_asyncmigrationerror" in no_clickhouse.value.problems[1]] == [
        no_clickhouse.value.problems[0],
        True,
    ]
    with pytest.raises(PreflightError) as no_postgres:
        check(None, system.warehouse(), Settings(), [away])
    assert "person_distinct_id2" in no_postgres.value.problems[1]
    with pytest.raises(PreflightError) as neither:
        check(None, None, Settings(), [away])
    assert neither.value.problems == [away]


@pytest.mark.parametrize("where", ["the old table", "the new table", "Postgres"])
def test_a_team_that_is_known_anywhere_may_be_asked_for(system: System, where: str) -> None:
    if where == "Postgres":
        insert_truth(system, ALICE)
    else:
        table = "person_distinct_id" if where == "the old table" else "person_distinct_id2"
        system.clickhouse.command(f"INSERT INTO {table} (team_id) VALUES ({TEAM})")
    assert look(system, Settings(team_ids=(TEAM,))).verdict is Verdict.MIGRATE
    [problem] = problems_of(system, Settings(team_ids=(TEAM, 404)))
    assert "404" in problem
    assert "Trigger the run again without it" in problem


NEEDED = [(table, privilege) for table, privileges in PRIVILEGES.items() for privilege in privileges]


@contextmanager
def restricted_role(system: System, *, lacking: tuple[str, str] | None = None) -> Iterator[Ledger]:
    """A ledger on a connection that may do just what the migration needs, except for one privilege on one table."""
    role = f"migrator_{uuid4().hex}"
    system.postgres.execute(f"CREATE ROLE {role}")
    system.postgres.execute(f"GRANT CREATE ON DATABASE {system.database} TO {role}")
    for table, privilege in NEEDED:
        if (table, privilege) != lacking:
            system.postgres.execute(f"GRANT {privilege} ON {table} TO {role}")
    system.postgres.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")
    ledger = system.ledger()
    postgres.execute(ledger.connection, "session_limits")
    ledger.connection.execute(f"SET ROLE {role}")
    try:
        yield ledger
    finally:
        ledger.connection.close()
        system.postgres.execute(f"DROP OWNED BY {role}")
        system.postgres.execute(f"DROP ROLE {role}")


@pytest.mark.parametrize("lacking", NEEDED, ids=lambda lacking: " ".join(reversed(lacking)))
def test_a_missing_privilege_is_reported(system: System, lacking: tuple[str, str]) -> None:
    with restricted_role(system, lacking=lacking) as ledger:
        [problem] = problems_of(system, ledger=ledger)
    table, privilege = lacking
    assert problem == f"The Postgres role may not {privilege} on {table}. GRANT {privilege} ON {table} to it."


def secure_rows(system: System, table: str) -> None:
    """Hides rows of the table from everybody but its owner."""
    system.postgres.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    system.postgres.execute(f"CREATE POLICY few ON {table} USING (id = 1)")


@pytest.mark.parametrize("table", APPLICATION_COLUMNS | SETTING_COLUMNS)
def test_a_table_whose_rows_a_policy_of_postgres_may_hide_is_reported(system: System, table: str) -> None:
    """What is hidden would be taken for deleted."""
    insert_old(system, [event("+A1")])
    with restricted_role(system) as ledger:
        secure_rows(system, table)
        [problem] = problems_of(system, ledger=ledger)
        assert f"Row security may hide rows of {table} from the Postgres role." in problem
        assert "BYPASSRLS" in problem
        ledger.connection.execute("RESET ROLE")
        assert look(system).verdict is Verdict.MIGRATE, "the owner sees every row"


def test_row_security_is_no_problem_where_nothing_is_left_to_do(system: System) -> None:
    with restricted_role(system) as ledger:
        set_row(system, 2)
        for table in ("posthog_team", "posthog_person", "posthog_persondistinctid"):
            secure_rows(system, table)
        assert check(ledger, system.warehouse(), Settings(), []).verdict is Verdict.NOTHING


@pytest.mark.parametrize("hidden", ["another search path", "no USAGE"])
def test_tables_in_a_schema_that_the_role_does_not_look_into_are_one_line(system: System, hidden: str) -> None:
    system.postgres.execute("CREATE SCHEMA app")
    with restricted_role(system) as ledger:
        if hidden == "no USAGE":
            system.postgres.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
        else:
            ledger.connection.execute("SET search_path = app")
        [problem] = problems_of(system, ledger=ledger)
    assert "does not find posthog_asyncmigration, posthog_asyncmigrationerror, posthog_person, " in problem
    assert "in the schema public" in problem
    if hidden == "no USAGE":
        assert 'search_path is "$user", public' in problem
        assert "GRANT USAGE ON SCHEMA public TO migrator_" in problem
        assert "ALTER ROLE" not in problem
    else:
        assert "search_path is app" in problem
        assert "SET search_path = public" in problem
        assert "GRANT USAGE" not in problem


def test_a_role_that_may_not_create_the_ledger_is_reported(system: System) -> None:
    with restricted_role(system) as ledger:
        (role,) = ledger.connection.execute("SELECT current_user").fetchone()
        system.postgres.execute(f"REVOKE CREATE ON DATABASE {system.database} FROM {role}")
        [problem] = problems_of(system, ledger=ledger)
    assert "may not create the ledger's schema" in problem


def test_what_preflight_lets_through_can_be_begun(system: System) -> None:
    """Preflight misses no privilege: with just those that it asks for, the next step works."""
    system.postgres.execute("DELETE FROM posthog_asyncmigration")
    with restricted_role(system) as ledger:
        assert check(ledger, system.warehouse(), Settings(), []).verdict is Verdict.MIGRATE
        enable(system, ledger)
        assert system.status() == 5


@pytest.fixture
def latin1(postgres_server: Postgres) -> Iterator[psycopg.Connection]:
    """The application's tables in a database of another encoding."""
    name = f"latin1_{uuid4().hex}"
    with postgres_server.connect("postgres") as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    with postgres_server.connect(name) as connection:
        schema.create_postgres(connection)
        yield connection


def test_another_encoding_than_utf8_is_reported(system: System, latin1: psycopg.Connection) -> None:
    with pytest.raises(PreflightError) as refused:
        check(Ledger(latin1, "a run", "a test"), system.warehouse(), Settings(), [])
    [problem] = refused.value.problems
    assert "encoded in LATIN1" in problem
    assert "Point posthog_postgres at the application's UTF8 database." in problem


@pytest.mark.parametrize("status", [0, 3, 4, 6], ids=["not started", "errored", "rolled back", "failed at startup"])
def test_a_row_at_rest_may_begin(system: System, status: int) -> None:
    set_row(system, status)
    assert look(system).verdict is Verdict.MIGRATE


@pytest.mark.parametrize("is_open", [True, False])
def test_a_schema_in_which_everybody_may_create_is_noted(system: System, is_open: bool) -> None:
    system.postgres.execute(
        "GRANT CREATE ON SCHEMA public TO PUBLIC" if is_open else "REVOKE CREATE ON SCHEMA public FROM PUBLIC"
    )
    seen = look(system)
    assert seen.verdict is Verdict.MIGRATE
    assert ("REVOKE CREATE ON SCHEMA public FROM PUBLIC" in seen.message) is is_open


def test_functions_and_operators_that_somebody_made_for_varchar_are_not_run(system: System) -> None:
    """Postgres has none for varchar, and takes an exact match in public before its own for text (CVE-2018-1058)."""
    system.postgres.execute(
        """
        CREATE FUNCTION public.textsend(varchar) RETURNS bytea LANGUAGE plpgsql
        AS $$ BEGIN RAISE 'it was run as the migration'; END $$;
        CREATE FUNCTION public.equal(varchar, varchar) RETURNS bool LANGUAGE plpgsql
        AS $$ BEGIN RAISE 'it was run as the migration'; END $$;
        CREATE FUNCTION public.equal(varchar, text) RETURNS bool LANGUAGE plpgsql
        AS $$ BEGIN RAISE 'it was run as the migration'; END $$;
        CREATE OPERATOR public.= (FUNCTION = public.equal, LEFTARG = varchar, RIGHTARG = varchar);
        CREATE OPERATOR public.= (FUNCTION = public.equal, LEFTARG = varchar, RIGHTARG = text);
        """
    )
    insert_truth(system, ALICE, 1)
    switched(system)
    assert system.value("SELECT count(*) FROM pdi2_migration.finding WHERE repaired") == 1


@pytest.mark.parametrize(("status", "noted"), [(0, True), (3, True), (6, True), (2, False), (None, False)])
def test_an_unfinished_migration_before_this_one_is_noted_and_stops_nothing(
    system: System, status: int | None, noted: bool
) -> None:
    """PostHog's runner wants 0002 to be complete first (is_migration_dependency_fulfilled in its runner.py), and 1.33
    runs 0002 on ClickHouse 21.6 alone (supported_version in migrations/0002_events_sample_by.py)."""
    if status is not None:
        system.postgres.execute(
            "INSERT INTO posthog_asyncmigration (name, description, status) VALUES (%s, '', %s)",
            ["0002_events_sample_by", status],
        )
    before = dump(system)
    for settings, verdict in ((Settings(), Verdict.MIGRATE), (Settings(dry_run=True), Verdict.PLAN_ONLY)):
        seen = look(system, settings)
        assert seen.verdict is verdict
        assert (f"0002_events_sample_by is not complete (status {status})" in seen.message) is noted
    assert dump(system) == before


def switched(system: System) -> None:
    """Reads are switched by this project, and both tables are still written."""
    ledger = system.ledger("an earlier run")
    migrate(system, ledger)
    certify(ledger, system.warehouse(), NO_WAIT)
    switch_reads(ledger, system.warehouse(), NO_WAIT)
    ledger.end_run("completed")


def test_a_completed_migration_leaves_nothing_to_do(system: System) -> None:
    switched(system)
    set_switch(system.postgres, WRITES, "new")
    before = dump(system)
    found = look(system)
    assert (found.verdict, "complete already" in found.message) == (Verdict.NOTHING, True)
    assert dump(system) == before


COMPLETE = "UPDATE posthog_asyncmigration SET status = 2, progress = 100, finished_at = now()"


@WITH_AND_WITHOUT_SETTINGS
@pytest.mark.parametrize("before", ["nothing", "a trial", "a switch that was rolled back", "a switch"])
def test_a_migration_that_somebody_else_completed_is_not_called_complete(system: System, before: str) -> None:
    """PostHog's runner completes it if is_required() is false, or after "Resume" on its page."""
    if before == "a trial":
        enable(system, system.ledger("a trial"))
    elif before != "nothing":
        switched(system)
        status = 4 if before == "a switch that was rolled back" else 3
        set_row(system, status)
        system.ledger().record("rolled_back" if status == 4 else "somebody set it Errored")
    system.postgres.execute(COMPLETE)
    unchanged = dump(system)

    found = look(system)

    assert found.verdict is Verdict.NOTHING
    assert "completed by somebody else" in found.message
    assert "unverified" in found.message
    assert "Trigger audit_person_distinct_id2" in found.message
    assert dump(system) == unchanged


def test_a_completed_migration_whose_old_table_is_gone_leaves_nothing_to_do(system: System) -> None:
    set_row(system, 2)
    set_switch(system.postgres, WRITES, "new")
    system.clickhouse.command("DROP TABLE person_distinct_id")
    assert look(system).verdict is Verdict.NOTHING


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        (Settings(), Verdict.STOP_OLD_WRITES),
        (Settings(stop_old_writes=False), Verdict.NOTHING),
        (Settings(dry_run=True), Verdict.NOTHING),
    ],
    ids=["old writes end", "old writes go on", "dry run"],
)
def test_a_switched_system_may_still_write_both_tables(system: System, settings: Settings, verdict: Verdict) -> None:
    switched(system)
    assert look(system, settings).verdict is verdict


def test_the_skip_comment_leaves_nothing_to_do(system: System) -> None:
    system.clickhouse.command(
        "ALTER TABLE person_distinct_id COMMENT COLUMN distinct_id 'skip_0003_fill_person_distinct_id2'"
    )
    before = dump(system)
    found = look(system)
    assert (found.verdict, "skip comment" in found.message) == (Verdict.NOTHING, True)
    assert dump(system) == before


@pytest.mark.parametrize(
    ("where", "comment", "verdict"),
    [
        ("person_distinct_id_backup", "skip_0003_fill_person_distinct_id2", Verdict.NOTHING),
        ("person_distinct_id2", "remove skip_0003_fill_person_distinct_id2 before the migration", Verdict.MIGRATE),
        ("person_distinct_id2", "skip_0003_fill_person_distinct_id2 ", Verdict.MIGRATE),
        ("person_distinct_id2", "SKIP_0003_FILL_PERSON_DISTINCT_ID2", Verdict.MIGRATE),
    ],
)
def test_a_comment_skips_where_it_equals_the_word_on_any_column_of_the_database(
    system: System, where: str, comment: str, verdict: Verdict
) -> None:
    """PostHog compares like this (is_required of 0003). A fresh installation has the comment on the backup table."""
    system.clickhouse.command(f"CREATE TABLE IF NOT EXISTS {where} (distinct_id String) ENGINE = Memory")
    system.clickhouse.command(f"ALTER TABLE {where} COMMENT COLUMN distinct_id '{comment}'")
    assert look(system).verdict is verdict


def test_the_skip_comment_of_another_database_does_not_count(system: System) -> None:
    comment = "'skip_0003_fill_person_distinct_id2'"
    elsewhere = f"{system.database}_elsewhere"
    system.clickhouse.command(f"CREATE DATABASE {elsewhere}")
    system.clickhouse.command(f"CREATE TABLE {elsewhere}.t (id Int8 COMMENT {comment}) ENGINE = Memory")
    assert look(system).verdict is Verdict.MIGRATE
    system.clickhouse.command(f"DROP DATABASE {elsewhere}")


def test_another_run_at_work_is_waited_for(system: System) -> None:
    owner = system.ledger("another run")
    enable(system, owner)
    hold(owner)
    before = dump(system)
    with pytest.raises(BusyError, match="holds the advisory lock.*Nothing was changed.*trigger this one again") as busy:
        look(system)
    assert reaction(busy.value) is Reaction.RETRY
    assert dump(system) == before

    end_session(system, owner)
    assert look(system).verdict is Verdict.MIGRATE


def test_preflight_leaves_the_lock_to_others(system: System) -> None:
    enable(system, system.ledger())
    here = system.ledger()
    check(here, system.warehouse(), Settings(), [])
    hold(system.ledger())


BAD_PARAMETERS: dict[str, dict[str, Any]] = {
    "unknown": {"team_id": 3},
    "no team": {"team_ids": []},
    "a word for a team": {"team_ids": ["seven"]},
    "nothing between two commas": {"team_ids": "2,,17"},
    "half a team": {"team_ids": [2.5]},
    "no number": {"in_flight_seconds": float("nan")},
    "one team, not a list": {"team_ids": 7},
    "text for a flag": {"dry_run": "yes"},
    "too little memory": {"max_memory_usage": 1_000_000},
    "too much memory": {"max_memory_usage": 10**15},
    "negative time": {"settle_seconds": -1},
    "more than a day": {"settle_seconds": 86_401},
    "more than an hour": {"in_flight_seconds": 3_601},
    "half a second": {"read_cache_seconds": 0.5},
    "no value": {"stop_old_writes": None},
    "a flag for a number": {"read_cache_seconds": True},
}


@pytest.mark.parametrize("bad", BAD_PARAMETERS.values(), ids=BAD_PARAMETERS.keys())
def test_a_bad_parameter_is_named(bad: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.validated({}, bad)
    [name] = bad
    [problem] = refused.value.problems
    assert name in problem
    assert re.fullmatch(r"\S.*[.] [A-Z].*[.]", problem)
    with pytest.raises(SettingsError):
        Settings.validated(bad)


def test_all_bad_parameters_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.validated({"settle_seconds": 1}, {"settle_seconds": -1, "dry_run": 3, "wrong": 1, "worse": 2})
    assert len(refused.value.problems) == 4


def test_what_the_run_was_triggered_with_wins_over_the_defaults() -> None:
    defaults = {name: definition["default"] for name, definition in SCHEMA.items()}
    assert Settings.validated(defaults) == Settings.validated({}) == Settings()
    settings = Settings.validated(defaults, {"settle_seconds": 7, "team_ids": [3, 1, 3]})
    assert (settings.settle_seconds, settings.team_ids) == (7, (1, 3))


@pytest.mark.parametrize(
    ("given", "teams"),
    [
        (None, None),
        ("2, 17", (2, 17)),
        (" [17, 2] ", (2, 17)),
        ("138", (138,)),
        ([2, 17], (2, 17)),
        ([2.0], (2,)),
        (["2", "17, 3"], (2, 3, 17)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("known", [SCHEMA, AUDIT_SCHEMA], ids=["fill", "audit"])
def test_teams_are_named_as_text_or_as_a_list(given: Any, teams: tuple[int, ...] | None, known: dict[str, Any]) -> None:
    assert Settings.validated({}, {"team_ids": given}, known).team_ids == teams


def test_a_whole_number_is_an_integer_however_json_writes_it() -> None:
    settings = Settings.validated({}, {"settle_seconds": 2.0, "read_cache_seconds": 0.0, "max_memory_usage": 2e8})

    assert [type(value) for value in asdict(settings).values()].count(float) == 0
    assert (settings.settle_seconds, settings.read_cache_seconds, settings.max_memory_usage) == (2, 0, 200_000_000)
    assert Settings.validated({}, {"max_memory_usage": 6e7}, AUDIT_SCHEMA).max_memory_usage == 60_000_000


def test_neither_the_row_nor_the_plan_that_an_earlier_run_left_stops_the_next(system: System) -> None:
    insert_old(system, [event("+A1"), event("+B2", "other")])
    insert_truth(system, BOB)
    ledger = system.ledger("an earlier run")
    enable(system, ledger)
    assert system.status() == 5
    plan(system, ledger)
    assert look(system).verdict is Verdict.MIGRATE
