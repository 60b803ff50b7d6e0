"""Everything that must be so before a migration may begin. Changes nothing, and reports all problems at once."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from clickhouse_connect.driver.exceptions import ClickHouseError
from psycopg import Connection

from pdi2.core import cluster, postgres
from pdi2.core.clickhouse import Warehouse
from pdi2.core.failures import BusyError, MigrationError, Reaction, describe, reaction
from pdi2.core.ledger import AT_WORK, Ledger
from pdi2.core.planning import rows_by_team
from pdi2.core.settings import Settings
from pdi2.core.switches import NAME, Status, Switches
from pdi2.core.words import counted

OLDEST_CLICKHOUSE = (23, 6)
OLDEST_POSTGRES = 120000

TABLES: dict[str, dict[str, Any]] = {
    "person_distinct_id": {
        "engine": "CollapsingMergeTree",
        "by": "_sign",
        "sorting_key": "team_id, distinct_id, person_id",
        "columns": {
            "distinct_id": "String",
            "person_id": "UUID",
            "team_id": "Int64",
            "_sign": "Int8",
            "is_deleted": "Int8",
            "_timestamp": "DateTime",
            "_offset": "UInt64",
        },
    },
    "person_distinct_id2": {
        "engine": "ReplacingMergeTree",
        "by": "version",
        "sorting_key": "team_id, distinct_id",
        "columns": {
            "team_id": "Int64",
            "distinct_id": "String",
            "person_id": "UUID",
            "is_deleted": "Int8",
            "version": "Int64",
            "_timestamp": "DateTime",
            "_offset": "UInt64",
            "_partition": "UInt64",
        },
    },
}

APPLICATION_COLUMNS = {
    "posthog_person": {"id", "uuid", "team_id"},
    "posthog_persondistinctid": {"id", "distinct_id", "person_id", "team_id", "version"},
    "posthog_asyncmigration": {
        "id",
        "name",
        "description",
        "progress",
        "status",
        "started_at",
        "finished_at",
    },
    "posthog_asyncmigrationerror": {"description", "created_at", "async_migration_id"},
}
SETTING_COLUMNS = {"posthog_instancesetting": {"key", "raw_value"}}

PRIVILEGES = [
    ("posthog_person", "SELECT"),
    ("posthog_persondistinctid", "SELECT"),
    ("posthog_asyncmigration", "SELECT"),
    ("posthog_asyncmigration", "INSERT"),
    ("posthog_asyncmigration", "UPDATE"),
    ("posthog_asyncmigrationerror", "INSERT"),
    ("posthog_instancesetting", "SELECT"),
    ("posthog_instancesetting", "INSERT"),
    ("posthog_instancesetting", "UPDATE"),
]


class PreflightError(MigrationError):
    """The migration cannot begin; `problems` has one sentence and its next step for each reason."""

    def __init__(self, problems: list[str]) -> None:
        listed = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
        super().__init__(
            f"The migration cannot begin, for {counted(len(problems), 'reason')}; nothing was changed.\n{listed}"
        )
        self.problems = problems


class Verdict(StrEnum):
    """What is left to do."""

    MIGRATE = "migrate"
    PLAN_ONLY = "plan only"
    STOP_OLD_WRITES = "stop old writes"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Preflight:
    verdict: Verdict
    message: str


def check(ledger: Ledger | None, warehouse: Warehouse | None, settings: Settings, found: list[str]) -> Preflight:
    """Looks at whichever database could be reached; `found` has the problems met on the way to them.

    Raises PreflightError with every problem, BusyError where another run is at work.
    """
    problems = list(found)
    if warehouse:
        problems += (tables := _table_problems(warehouse)) or _disk_problems(warehouse) + cluster.problems(warehouse)
    if ledger:
        problems += _server_problems(ledger.connection)
        problems += (application := _application_problems(ledger.connection))
        problems += (privileges := _privilege_problems(ledger.connection))
    if not ledger or not warehouse or found or application or privileges:
        raise PreflightError(problems)
    if ended := _already_ended(ledger, warehouse, settings):
        return ended
    if not tables:
        problems += _team_problems(ledger.connection, warehouse, settings)
    problems += _switch_problems(ledger)
    if problems:
        raise PreflightError(problems)
    if not ledger.is_free():
        raise BusyError(AT_WORK)
    if settings.dry_run:
        return Preflight(Verdict.PLAN_ONLY, "All checks passed. Dry run: only the plan follows.")
    return Preflight(Verdict.MIGRATE, "All checks passed.")


def _already_ended(ledger: Ledger, warehouse: Warehouse, settings: Settings) -> Preflight | None:
    skip = [f"{table.decode()}.{column.decode()}" for table, column in warehouse.rows("skip_comment")]
    if skip:
        return Preflight(
            Verdict.NOTHING, f"This instance does not need the migration: {skip[0]} carries the skip comment."
        )
    switches = Switches(ledger.connection)
    row = switches.row()
    if row is None or row.status != Status.COMPLETED_SUCCESSFULLY:
        return None
    if switches.writes() == "both" and settings.stop_old_writes and not settings.dry_run:
        return Preflight(Verdict.STOP_OLD_WRITES, "Reads are switched already; stopping old writes is what is left.")
    return Preflight(Verdict.NOTHING, "The migration is complete already; there is nothing to do.")


def _switch_problems(ledger: Ledger) -> list[str]:
    switches = Switches(ledger.connection)
    row = switches.row()
    problems = []
    if row and row.status == Status.RUNNING:
        problems.append(
            f"PostHog's own runner is running {NAME} (status Running). Stop it on PostHog's page for "
            "async migrations, then trigger this run again."
        )
    if row and row.status == Status.STARTING and not ledger.set_starting():
        problems.append(
            f"The row {NAME} is Starting, and this project did not set it: PostHog's own runner may be about to "
            "begin. Stop it, or set the row's status back to 0, then trigger this run again."
        )
    if switches.writes() == "new":
        problems.append(
            "The application already writes the new table only, though the migration is not complete: the old "
            'table lacks what came since. Set PERSON_DISTINCT_ID_WRITES to "both" and see docs/runbook.md.'
        )
    return problems


def _server_problems(connection: Connection[Any]) -> list[str]:
    version, encoding, may_create = postgres.execute(connection, "server").fetchone() or (0, "", False)
    problems = []
    if version < OLDEST_POSTGRES:
        problems.append(f"Postgres is version {version // 10000}; 12 is the oldest that works. Upgrade Postgres first.")
    if encoding != "UTF8":
        problems.append(
            f"The Postgres database is encoded in {encoding}, and hashes of ids would differ from ClickHouse's. "
            "Point posthog_postgres at the application's UTF8 database."
        )
    if not may_create:
        problems.append(
            "The Postgres role may not create the ledger's schema pdi2_migration. "
            "GRANT CREATE ON DATABASE to it, or create the schema for it."
        )
    return problems


def _application_problems(connection: Connection[Any]) -> list[str]:
    wanted = dict(APPLICATION_COLUMNS)
    if Switches(connection).has_settings:
        wanted |= SETTING_COLUMNS
    found = dict(postgres.execute(connection, "columns", {"tables": list(wanted)}).fetchall())
    problems = []
    for table, columns in wanted.items():
        if table not in found:
            problems.append(
                f"Postgres has no table {table}. "
                "Point the connection posthog_postgres at the application's own database."
            )
        elif missing := sorted(columns - set(found[table])):
            problems.append(
                f"Postgres table {table} has no column {', '.join(missing)}. Upgrade PostHog to 1.33 or later first."
            )
    return problems


def _privilege_problems(connection: Connection[Any]) -> list[str]:
    tables, privileges = zip(*PRIVILEGES, strict=True)
    lacking = postgres.execute(
        connection, "privileges", {"tables": list(tables), "privileges": list(privileges)}
    ).fetchall()
    return [
        f"The Postgres role may not {privilege} on {table}. GRANT {privilege} ON {table} to it."
        for table, privilege in lacking
    ] + [
        f"The Postgres role may not number new rows of {table}. GRANT USAGE ON SEQUENCE {sequence} to it."
        for table, sequence in postgres.execute(connection, "sequences", {"tables": list(tables)})
    ]


def _table_problems(warehouse: Warehouse) -> list[str]:
    problems = []
    version, database = warehouse.rows("server")[0]
    number = tuple(int(part) for part in re.findall(r"\d+", version.decode())[:2])
    if number < OLDEST_CLICKHOUSE:
        problems.append(
            f"ClickHouse is version {version.decode()}; {OLDEST_CLICKHOUSE[0]}.{OLDEST_CLICKHOUSE[1]} is the oldest "
            "that this migration is tested on. Upgrade ClickHouse first, or let PostHog's own runner migrate."
        )
    tables = {row[0].decode(): row[1:] for row in warehouse.rows("tables")}
    columns = {(table.decode(), name.decode()): type_.decode() for table, name, type_ in warehouse.rows("columns")}
    for table, wanted in TABLES.items():
        if table not in tables:
            problems.append(
                f"ClickHouse database {database.decode()} has no table {table}. "
                "Point the connection posthog_clickhouse at PostHog's database, or run PostHog's own migrations first."
            )
            continue
        engine, definition, sorting_key = (value.decode() for value in tables[table][:3])
        if problem := cluster.engine_problem(table, engine, definition, wanted["engine"], wanted["by"]):
            problems.append(problem)
        elif sorting_key != wanted["sorting_key"]:
            problems.append(
                f"ClickHouse table {table} is sorted by ({sorting_key}), not ({wanted['sorting_key']}). "
                "Create it again as PostHog does."
            )
        problems += [
            _column_problem(table, column, type_, columns.get((table, column)))
            for column, type_ in wanted["columns"].items()
            if not columns.get((table, column), "").startswith(type_)
        ]
    return problems


def _column_problem(table: str, column: str, wanted: str, found: str | None) -> str:
    state = f"is {found}, not {wanted}" if found else f"is missing; it should be {wanted}"
    return f"Column {column} of ClickHouse table {table} {state}. Create the table as PostHog does."


def _disk_problems(warehouse: Warehouse) -> list[str]:
    sizes = {row[0].decode(): row[-1] for row in warehouse.rows("tables")}
    needed, free = sizes["person_distinct_id"] or 0, warehouse.rows("free_disk")[0][0]
    if free >= needed:
        return []
    return [
        f"ClickHouse has {free / 1e9:.1f} GB of disk free and the copy may need {needed / 1e9:.1f} GB (the size of "
        "the old table). Free or add disk first."
    ]


def _team_problems(connection: Connection[Any], warehouse: Warehouse, settings: Settings) -> list[str]:
    try:
        known = rows_by_team(connection, warehouse)
    except ClickHouseError as error:
        if reaction(error) is not Reaction.FAIL:
            raise
        return [
            f"ClickHouse does not let this user read its tables: {describe(error)}. Grant what docs/runbook.md lists."
        ]
    return [
        f"team_ids names {team_id}, and no such team has a row in ClickHouse or in Postgres. "
        "Trigger the run again without it."
        for team_id in settings.team_ids or ()
        if team_id not in known
    ]
