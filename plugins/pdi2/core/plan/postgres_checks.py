"""Checks what must hold in Postgres before a migration may begin, and the privileges that it needs."""

from collections.abc import Set
from typing import Any

import psycopg
from psycopg import Connection

from pdi2.core.engines import postgres
from pdi2.core.state.switches import READS, WRITES, Switches

OLDEST_POSTGRES = 110000

APPLICATION_COLUMNS = {
    "posthog_team": {"id"},
    "posthog_person": {"id", "uuid", "team_id"},
    "posthog_persondistinctid": {"id", "distinct_id", "person_id", "team_id", "version"},
    "posthog_asyncmigration": {"id", "name", "description", "progress", "status", "started_at", "finished_at"},
    "posthog_asyncmigrationerror": {"description", "created_at", "async_migration_id"},
}
TOMBSTONES = {("posthog_person", "is_deleted"), ("posthog_persondistinctid", "is_deleted")}
"""Columns of PostHog from 2025 on (management/commands/sync_persons_to_clickhouse.py), which keeps deleted rows."""
SETTING_COLUMNS = {"posthog_instancesetting": {"key", "raw_value"}}

PRIVILEGES = {
    "posthog_team": ("SELECT",),
    "posthog_person": ("SELECT",),
    "posthog_persondistinctid": ("SELECT",),
    "posthog_asyncmigration": ("SELECT", "INSERT", "UPDATE"),
    "posthog_asyncmigrationerror": ("INSERT",),
    "posthog_instancesetting": ("SELECT", "INSERT", "UPDATE"),
}


def server_problems(connection: Connection[Any]) -> list[str]:
    version, encoding, may_create = postgres.execute(connection, "server").fetchone() or (0, "", False)
    problems = []
    if version < OLDEST_POSTGRES:
        problems.append(f"Postgres is version {version // 10000}; 11 is the oldest that works. Upgrade Postgres first.")
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


def read_only(connection: Connection[Any]) -> list[str]:
    """Why nothing can be written, or nothing that the application would see."""
    standby, read_only, subscription = postgres.execute(connection, "writable").fetchone() or (False, False, None)
    if standby:
        return [
            "Postgres is a standby (a read replica), which takes no writes, and the migration writes its ledger and "
            "the migration row. Point the Airflow connection posthog_postgres at the primary."
        ]
    if read_only:
        return [
            "Postgres gives this role read-only transactions (default_transaction_read_only is on), and the migration "
            "writes its ledger and the migration row. Find out why (some services do so when the disk is full), then "
            "ALTER ROLE, or DATABASE if it is set there, SET default_transaction_read_only = off."
        ]
    if subscription:
        return [
            f"Postgres is a logical replica (the subscription {subscription} fills posthog_persondistinctid), so the "
            "application would not see a switch that is made here. Point the Airflow connection posthog_postgres at "
            "the application's own database. If this is that database, and an old one fed it: ALTER SUBSCRIPTION "
            f"{subscription} DISABLE."
        ]
    return []


def application_problems(connection: Connection[Any]) -> list[str]:
    wanted = dict(APPLICATION_COLUMNS)
    switches = Switches(connection)
    if switches.has_settings:
        wanted |= SETTING_COLUMNS
    found = dict(postgres.execute(connection, "columns", {"tables": list(wanted)}).fetchall())
    elsewhere, problems = ([], []) if found else _elsewhere(connection, wanted.keys())
    for table, columns in wanted.items():
        if table in elsewhere:
            continue
        if table not in found:
            problems.append(
                f"Postgres has no table {table}, or only a view or a foreign table. Point the connection "
                "posthog_postgres at the application's own database, or upgrade PostHog to 1.33 if it is older than "
                "1.32."
            )
        elif missing := sorted(columns - set(found[table])):
            problems.append(
                f"Postgres table {table} has no column {', '.join(missing)}. Upgrade PostHog to 1.33 or later first."
            )
    return problems or setting_problems(switches)


def setting_problems(switches: Switches) -> list[str]:
    """Why the application's settings cannot be read."""
    try:
        switches.writes(), switches.reads()
    except psycopg.errors.InvalidTextRepresentation as error:
        return [
            f"A setting of posthog_instancesetting, {WRITES} or {READS}, is no JSON: {error.diag.message_detail} "
            'PostHog cannot read it either. Set its raw_value to "old", "both" or "new", with these quotes.'
        ]
    except psycopg.errors.InsufficientPrivilege:
        pass  # which other checks report
    return []


def tombstone_problems(connection: Connection[Any]) -> list[str]:
    """Why no id of Postgres may be taken for a live one."""
    tables = sorted({table for table, _ in TOMBSTONES})
    found = dict(postgres.execute(connection, "columns", {"tables": tables}).fetchall())
    return [
        f"Postgres table {table} has a column {column}: this PostHog keeps deleted rows, and this project would take "
        "them for live ones. This project is for PostHog 1.32 to 1.36; do not use it here."
        for table, column in sorted(TOMBSTONES)
        if column in found.get(table, [])
    ]


def _elsewhere(connection: Connection[Any], tables: Set[str]) -> tuple[list[str], list[str]]:
    """Tables that are in a schema where the role does not look, and the line that says so."""
    row = postgres.execute(connection, "elsewhere", {"tables": list(tables)}).fetchone()
    if not row:
        return [], []
    schema, may_use, names, path, role = row
    why, remedy = (
        ("is not in the role's search_path", f"ALTER ROLE {role} SET search_path = {schema}")
        if may_use
        else ("the role may not use", f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    )
    return names, [
        f"The Postgres role does not find {', '.join(names)} in the schema {schema}, which {why} "
        f"(search_path is {path}). {remedy}."
    ]


def ledger_problems(connection: Connection[Any]) -> list[str]:
    """Why this role cannot use the ledger that is there: another role has created it."""
    owner, role, lacking = postgres.execute(connection, "ledger_privileges").fetchone() or ("", "", [])
    if not lacking:
        return []
    return [
        f"The ledger, Postgres schema pdi2_migration, belongs to {owner}, and the role of posthog_postgres, {role}, "
        f"may not use all of it ({', '.join(lacking)}). Let {owner} run the migration, or GRANT ALL ON SCHEMA "
        f"pdi2_migration TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA pdi2_migration TO {role}; GRANT ALL ON ALL "
        f"SEQUENCES IN SCHEMA pdi2_migration TO {role}."
    ]


def row_security_problems(connection: Connection[Any]) -> dict[str, str]:
    """By table, the problem that a policy may hide its rows."""
    tables = list(APPLICATION_COLUMNS | SETTING_COLUMNS)
    return {
        table: f"Row security may hide rows of {table} from the Postgres role. Give the role BYPASSRLS (ALTER "
        "ROLE), or point posthog_postgres at the role that owns the table."
        for (table,) in postgres.execute(connection, "row_security", {"tables": tables})
    }


def open_schemas(connection: Connection[Any]) -> list[str]:
    """Schemas where any role could create what our statements and the application's would take for Postgres's own."""
    return [
        f"Every role of Postgres may create tables and functions in the schema {schema}, where this project and "
        "PostHog look up theirs, so any role could have its own executed instead. This run goes on. If no application "
        f"needs it: REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC."
        for (schema,) in postgres.execute(connection, "open_schemas")
    ]


def privilege_problems(connection: Connection[Any]) -> list[str]:
    needed = [(table, privilege) for table, privileges in PRIVILEGES.items() for privilege in privileges]
    tables, privileges = map(list, zip(*needed, strict=True))
    given = {"tables": tables, "privileges": privileges}
    problems = [
        f"The Postgres role may not {privilege} on {table}. GRANT {privilege} ON {table} to it."
        for table, privilege in postgres.execute(connection, "privileges", given)
    ]
    problems += [
        f"The Postgres role may not use the sequence of {table}. GRANT USAGE ON SEQUENCE {sequence} to it."
        for table, sequence in postgres.execute(connection, "sequences", {"tables": tables})
    ]
    if not postgres.value(connection, "may_know_server"):
        problems.append(
            "The Postgres role may not call pg_control_system(), which tells one server from another. "
            "GRANT EXECUTE ON FUNCTION pg_control_system() TO it."
        )
    return problems
