"""The grants that the runbook lists are enough, and each of them is needed."""

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from conftest import AUDIT, FILL, ROLLBACK, ROOT, System
from pdi2 import sql as statements
from pdi2.core.copy.copying import copy_team
from pdi2.core.plan.preflight import Verdict, check
from pdi2.core.report.reporting import close_run
from pdi2.core.state.ledger import Ledger
from pdi2.core.switch.gate import certify, switch_reads
from pdi2.core.switch.rollback import roll_back
from pdi2.core.verify.verifying import verify_team
from stories import ALICE, NO_WAIT, TEAM, enable, event, insert_new, insert_old, insert_truth, plan, stop_old_writes

from demo import postgres as embedded
from demo.schema import Table

PACKAGE = ROOT / "plugins" / "pdi2"
GRANTS = (ROOT / "docs" / "runbook.md").read_text().partition("## Grants")[2]
POSTGRES, SETTINGS, CLICKHOUSE = (
    re.sub(r"--.*", "", block) for block in re.findall(r"```sql\n(.*?)```", GRANTS, re.DOTALL)
)
Grant = tuple[str, str]
"""A privilege, and what it is granted on."""


def granted(block: str) -> list[Grant]:
    found = []
    for privileges, kind, objects in re.findall(
        r"GRANT ([^;]+?) ON (DATABASE |SCHEMA |SEQUENCE |)([^;]+?) TO migration;", block
    ):
        found += [
            (privilege, f"{kind}{' '.join(name.split())}")
            for privilege in re.split(r",\s*", privileges)
            for name in re.split(r",\s*", objects)
        ]
    return found


@pytest.fixture
def release(request: pytest.FixtureRequest) -> str:
    """A release without instance settings, as where the migration is due. Some tests ask for another."""
    return getattr(request, "param", "1.32")


WITH_AND_WITHOUT_SETTINGS = pytest.mark.parametrize("release", ["1.32", "1.34"], indirect=True)


@pytest.fixture
def role(system: System, release: str) -> Iterator[str]:
    """A role with what the runbook grants, in a database that grants PUBLIC nothing. That includes md5, which Postgres
    also refuses if its OpenSSL is in FIPS mode."""
    role = f"migration_{uuid4().hex}"
    system.postgres.execute(f"CREATE ROLE {role} LOGIN")
    system.postgres.execute(f"REVOKE ALL ON DATABASE {system.database} FROM PUBLIC")
    system.postgres.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    system.postgres.execute("REVOKE EXECUTE ON FUNCTION md5(text), md5(bytea) FROM PUBLIC")
    verbatim = POSTGRES if release == "1.32" else POSTGRES + SETTINGS
    block = verbatim.replace("DATABASE posthog", f"DATABASE {system.database}").replace("TO migration;", f"TO {role};")
    system.postgres.execute(block.encode())
    yield role
    system.postgres.execute(f"DROP OWNED BY {role}")
    system.postgres.execute(f"DROP ROLE {role}")


def everything(system: System, uri: str) -> None:
    """Does all that the migration does in Postgres, including a failed run and a rollback, starting from nothing."""
    system.postgres.execute("DELETE FROM posthog_asyncmigration")
    if settings := bool(system.switches()):
        system.postgres.execute("DELETE FROM posthog_instancesetting")
    insert_old(system, [event("+A1")])
    insert_truth(system, ALICE, 1)
    with psycopg.connect(uri, autocommit=True) as connection:
        warehouse = system.warehouse()
        ledger = Ledger(connection, "a run", "a test")
        assert check(ledger, warehouse, NO_WAIT, []).verdict is Verdict.MIGRATE
        enable(system, ledger)
        plan(system, ledger)
        ledger.record("task_failed", task="certify", error="the disk is full")
        assert close_run(ledger, NO_WAIT)["outcome"] == "failed"
        ledger = Ledger(connection, "the next run", "a test")
        enable(system, ledger)
        plan(system, ledger)
        copy_team(ledger, warehouse, TEAM)
        verify_team(ledger, warehouse, TEAM, NO_WAIT)
        certify(ledger, warehouse, NO_WAIT)
        switch_reads(ledger, warehouse, NO_WAIT)
        if settings:
            roll_back(Ledger(connection, "the rollback", "a test"))
            ledger = Ledger(connection, "the last run", "a test")
            enable(system, ledger)
            plan(system, ledger)
            verify_team(ledger, warehouse, TEAM, NO_WAIT)
            switch_reads(ledger, warehouse, NO_WAIT)
        stop_old_writes(system, ledger)
    assert system.status() == 2


@pytest.mark.slow
@pytest.mark.parametrize("release", ["1.32", pytest.param("1.34", marks=pytest.mark.chaos)], indirect=True)
@pytest.mark.usefixtures("airflow_metadata")
def test_the_dags_run_with_the_grants_of_the_runbook(
    system: System, role: str, postgres_server: embedded.Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(f"{system.uri} user={role}") as refused, pytest.raises(psycopg.errors.InsufficientPrivilege):
        refused.execute("SELECT md5('')")
    connection = postgres_server.airflow_connection(system.database) | {"login": role}
    monkeypatch.setenv("AIRFLOW_CONN_POSTHOG_POSTGRES", json.dumps(connection))
    insert_old(system, [event("+A1"), event("+A1", "gone")])
    insert_truth(system, ALICE, 1)
    insert_new(system, ALICE, 1, "id", is_deleted=True)

    assert system.run(FILL, stop_old_writes=False).state == "success"
    if settings := system.switches():
        assert system.run(ROLLBACK).state == "success"
        assert system.run(FILL).state == "success"
    insert_truth(system, ALICE, 1, "lost")
    assert system.run(AUDIT, repair=True, in_flight_seconds=0).state == "success"
    assert system.switches() == dict.fromkeys(settings, "new")
    assert system.disagreements() == {}
    assert system.value("SELECT count(DISTINCT action) FROM pdi2_migration.finding") == 3


@pytest.mark.slow
@pytest.mark.usefixtures("airflow_metadata")
def test_a_policy_that_is_made_after_preflight_hides_no_row_unseen(
    system: System, role: str, postgres_server: embedded.Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are hidden would be taken for deleted, and the application's rows would go from the new table."""
    connection = postgres_server.airflow_connection(system.database) | {"login": role}
    monkeypatch.setenv("AIRFLOW_CONN_POSTHOG_POSTGRES", json.dumps(connection))
    with psycopg.connect(f"{system.uri} user={role}", autocommit=True) as connection:
        Ledger(connection, "an earlier run", "a test").create()
    system.postgres.execute(
        """
        CREATE FUNCTION secure() RETURNS trigger SECURITY DEFINER LANGUAGE plpgsql AS $$ BEGIN
            ALTER TABLE posthog_persondistinctid ENABLE ROW LEVEL SECURITY;
            CREATE POLICY few ON posthog_persondistinctid FOR SELECT USING (team_id = 1);
            RETURN NEW; END $$;
        CREATE TRIGGER secure AFTER INSERT ON pdi2_migration.event
        FOR EACH ROW WHEN (NEW.what = 'planned') EXECUTE FUNCTION public.secure()
        """
    )
    insert_old(system, [event("+A1"), event("+A1", "written since")])
    insert_truth(system, ALICE, 0)
    insert_truth(system, ALICE, 1, "written since")
    insert_new(system, ALICE, 1, "written since")

    assert system.run(FILL).state == "failed"

    error = system.ledger().latest("task_failed")["error"]
    assert 'row-level security policy for table "posthog_persondistinctid"' in error
    assert "BYPASSRLS" in error
    assert system.disagreements() == {}
    assert system.status() != 2
    assert system.value("SELECT count(*) FROM pdi2_migration.finding") == 0


@WITH_AND_WITHOUT_SETTINGS
def test_everything_works_with_the_grants_of_the_runbook(system: System, role: str) -> None:
    everything(system, f"{system.uri} user={role}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grant", "release"),
    [(grant, "1.32") for grant in granted(POSTGRES)] + [(grant, "1.34") for grant in granted(SETTINGS)],
    indirect=["release"],
)
def test_each_grant_of_postgres_is_needed(
    system: System, role: str, grant: Grant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If preflight does not say that a privilege is missing, a statement fails."""
    privilege, target = grant
    here = target.replace("DATABASE posthog", f"DATABASE {system.database}")
    system.postgres.execute(f"REVOKE {privilege} ON {here} FROM {role}".encode())
    if target.split()[0] not in ("DATABASE", "SCHEMA"):
        monkeypatch.setattr("pdi2.core.plan.postgres_checks.privilege_problems", lambda connection: [])
    with pytest.raises(Exception, match="permission denied|may not create|does not find"):
        everything(system, f"{system.uri} user={role}")


STAGING = "person_distinct_id2_staging_*"
OF_TABLES = {
    "CREATE TABLE": "CREATE TABLE",
    "DROP TABLE": "DROP TABLE IF EXISTS",
    "ALTER SETTINGS": r"ALTER TABLE(?=\s+\w+\s+MODIFY SETTING)",
}


def privileges_of(statement: str) -> set[Grant]:
    """The privileges that ClickHouse asks for before it runs the statement."""
    text = re.sub(r"--.*", "", statement)
    inner = set(re.findall(r"(\w+) AS \(", text))
    read = set(re.findall(r"(?:FROM|JOIN)\s+([\w.]+)(?!\w*\()", text)) - inner
    needed = {("SELECT", table) for table in read}
    needed |= {("SELECT", table) for table in re.findall(r"mergeTreeIndex\(currentDatabase\(\), '(\w+)'\)", text)}
    needed |= {("INSERT", table) for table in re.findall(r"INSERT INTO (\w+)", text)}
    for table in re.findall(r"DELETE FROM (\w+)", text):
        needed |= {("ALTER DELETE", table), ("ALTER UPDATE(_row_exists)", table)}
    if "SYSTEM SYNC REPLICA" in text:
        needed |= {("SYSTEM SYNC REPLICA", str(table)) for table in Table}
    needed |= {("SELECT", table) for table in re.findall(r"CREATE TABLE \w+ AS (\w+)", text)}
    for privilege, words in OF_TABLES.items():
        needed |= {(privilege, table) for table in re.findall(rf"{words} (\w+)", text)}
    for table in re.findall(r"ALTER TABLE (\w+) ATTACH PARTITION", text):
        needed |= {("INSERT", table), ("ALTER DELETE", table)}
    if "FROM system.columns" in text and "table IN" not in text:
        needed.add(("SHOW COLUMNS", "*"))
    if text.startswith("KILL QUERY"):
        needed |= {("SELECT", "system.processes")}
    return {(privilege, table if "." in table else f"posthog.{table}") for privilege, table in needed}


def inserts_of_the_core() -> set[Grant]:
    """The tables that Warehouse.insert is called with. All other statements come from the files."""
    found = set()
    for path in (PACKAGE / "core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if path.name not in ("clickhouse.py", "measuring.py"):
                assert node.func.attr not in ("command", "query", "raw_query"), f"{path.name}: a statement of its own"
                if node.func.attr == "insert":
                    found.add(("INSERT", f"posthog.{ast.literal_eval(node.args[0])}"))
    return found


@pytest.mark.parametrize(
    ("statement", "needed"),
    [
        ("SELECT a FROM t JOIN system.parts ON 1", {("SELECT", "posthog.t"), ("SELECT", "system.parts")}),
        ("WITH x AS (SELECT 1 FROM t) SELECT * FROM x", {("SELECT", "posthog.t")}),
        ("SELECT 1 -- FROM nothing\nFROM (SELECT 1 FROM t)", {("SELECT", "posthog.t")}),
        ("SELECT number FROM numbers(3)", set()),
        ("SELECT 1 FROM mergeTreeIndex(currentDatabase(), 't')", {("SELECT", "posthog.t")}),
        ("INSERT INTO t (a) SELECT a FROM u", {("INSERT", "posthog.t"), ("SELECT", "posthog.u")}),
        (
            "DELETE FROM t WHERE a",
            {
                ("SELECT", "posthog.t"),
                ("ALTER DELETE", "posthog.t"),
                ("ALTER UPDATE(_row_exists)", "posthog.t"),
            },
        ),
    ],
)
def test_what_a_statement_needs_is_read_from_it(statement: str, needed: set[Grant]) -> None:
    assert privileges_of(statement) == needed


def test_the_grants_of_clickhouse_are_what_the_statements_need() -> None:
    names = [path.stem for path in (PACKAGE / "sql" / "clickhouse").glob("*/*.sql")]
    tables = defaultdict(lambda: "staging", server_settings="server_settings")
    needed = {grant for name in names for grant in privileges_of(statements.clickhouse(name, tables))}
    needed = {(privilege, table.replace(".staging", f".{STAGING}")) for privilege, table in needed}
    needed |= inserts_of_the_core()
    documented = granted(CLICKHOUSE)
    assert len(documented) == len(set(documented))
    assert needed - set(documented) == set(), "not documented"
    assert set(documented) - needed == set(), "not needed"
