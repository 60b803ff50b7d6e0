"""What preflight asks ClickHouse: the user's profile, the tables and the disks. Changes nothing."""

import re
from itertools import chain
from typing import Any

from clickhouse_connect.driver.exceptions import DatabaseError

from pdi2.core.cluster.ours import SYNC_SECONDS, SYNTAX
from pdi2.core.cluster.pressure import disks_of_new, kept_free
from pdi2.core.copy.copying import LEAST_MEMORY
from pdi2.core.copy.pieces import DECIDING, Budget
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.exactness import refusals
from pdi2.core.engines.statement_settings import REMOVING, spilling
from pdi2.core.plan import cluster_checks
from pdi2.core.state.slices import NEW_TABLE, OLD_TABLE

OLDEST_CLICKHOUSE = (22, 12)
ACCESS_DENIED = 497
TEXT = re.compile(r"'(?:[^'\\]|\\.)*'")
INNERMOST = re.compile(r"\([^()]*\)")
COLUMN_TTL = re.compile(r"`(\w+)` [^`]*? TTL ")
TTL = re.compile(r" TTL (.+?)(?: SETTINGS |$)", re.DOTALL)
HARMLESS_TTL = re.compile(r" (?:TO (?:DISK|VOLUME)|RECOMPRESS) ")
LEAST_LIMIT = LEAST_MEMORY // 2
"""In bytes. The copy sets itself a lower memory limit than the run's if the server is short of memory, or if a helper
table takes a part of it."""
PRIVILEGES = {
    OLD_TABLE: ("SELECT",),
    NEW_TABLE: ("SELECT", "INSERT", "ALTER DELETE"),
    f"{NEW_TABLE}_staging_0": ("CREATE TABLE", "DROP TABLE", "SELECT", "INSERT", "ALTER SETTINGS"),
}
"""The copy creates tables with names like the last one."""
MARKS = {"log_comment": "pdi2", "insert_deduplication_token": "pdi2"}
"""Every statement and every insert is marked with a text of its own."""

TABLES: dict[str, dict[str, Any]] = {  # PostHog up to 1.33 on ClickHouse 21.12 or later created is_deleted as a Bool
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
            "is_deleted": "Int8 or Bool",
            "version": "Int64",
            "_timestamp": "DateTime",
            "_offset": "UInt64",
            "_partition": "UInt64",
        },
    },
}


def table_problems(warehouse: Warehouse) -> list[str]:
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
        engine, definition, sorting_key, created_by = (value.decode() for value in tables[table])
        if problem := cluster_checks.engine_problem(table, engine, definition, wanted["engine"], wanted["by"]):
            problems.append(problem)
        elif sorting_key != wanted["sorting_key"]:
            problems.append(
                f"ClickHouse table {table} is sorted by ({sorting_key}), not ({wanted['sorting_key']}). "
                "Create it again as PostHog does."
            )
        if table == NEW_TABLE:
            problems += ttl_problems(created_by)
        problems += [
            f"A row policy hides rows of {table} from the ClickHouse user: it sees only those where {condition}. "
            "What is hidden would not be migrated, so lift the policy for the user of posthog_clickhouse, or use "
            "another user."
            for condition in _row_filters(warehouse, table)
        ]
        problems += [
            _column_problem(table, column, types, columns.get((table, column)))
            for column, types in wanted["columns"].items()
            if columns.get((table, column), "").partition("(")[0] not in types.split(" or ")  # DateTime('UTC') will do
        ]
    return problems


def _row_filters(warehouse: Warehouse, table: str) -> list[str]:
    """The conditions of row policies. None for a user who may not read the table, which later checks report."""
    try:
        plan = [
            line.decode().partition("Row level filter column:")
            for (line,) in warehouse.rows("row_filter", {"table": table})
        ]
    except DatabaseError as error:
        if error.code != ACCESS_DENIED:
            raise
        return []
    return [condition.strip() for _, found, condition in plan if found]


def ttl_problems(created_by: str) -> list[str]:
    """Whether merges would take rows or values from the new table, by the statement that creates it.

    Copied rows carry the times of the old table, so the first merges after verification would remove them.
    """
    columns, _, clauses = TEXT.sub("''", created_by).partition(") ENGINE = ")
    while (plainer := INNERMOST.sub("", clauses)) != clauses:
        clauses = plainer
    problems = [
        f"The TTL of column {column} of ClickHouse table {NEW_TABLE} resets values of copied rows after they are "
        f"verified, because they carry the times of the old table. ALTER TABLE {NEW_TABLE} MODIFY COLUMN {column} "
        "REMOVE TTL ends that."
        for column in COLUMN_TTL.findall(columns)
    ]
    ttl = TTL.search(clauses)
    if ttl and not all(HARMLESS_TTL.search(one) for one in ttl[1].split(",")):
        problems.append(
            f"ClickHouse table {NEW_TABLE} has a TTL that deletes rows: merges would delete copied rows after they are "
            f"verified, because they carry the times of the old table. ALTER TABLE {NEW_TABLE} REMOVE TTL ends that; "
            "a TTL that moves or recompresses parts may stay (MODIFY TTL)."
        )
    return problems


def _column_problem(table: str, column: str, types: str, found: str | None) -> str:
    state = f"is {found}, not {types}" if found else f"is missing; it should be {types}"
    return f"Column {column} of ClickHouse table {table} {state}. Create the table as PostHog does."


def disk_problems(warehouse: Warehouse, rows_copied: int) -> list[str]:
    """Whether what is still to be copied has room, if it takes as much as in the old table."""
    rows, size = warehouse.rows("size")[0]
    needed = size * max(0, rows - rows_copied) / max(1, rows)
    policy, free, total = disks_of_new(warehouse)
    kept = kept_free(total)
    if not needed or free > needed + kept:
        return []
    return [
        f"The disks of person_distinct_id2 (storage policy {policy}) have {free / 1e9:.1f} GB free. The copy may "
        f"need {needed / 1e9:.1f} GB (what is not copied yet, at its size in the old table), and must leave "
        f"{kept / 1e9:.1f} GB free. Free or add disk first."
    ]


def grant_problems(warehouse: Warehouse) -> list[str]:
    """What the ClickHouse user may not do. A server of before CHECK GRANT (24.11) does not tell."""
    problems = []
    for table, privileges in PRIVILEGES.items():
        for privilege in privileges:
            try:
                ((granted,),) = warehouse.rows("check_grant", {"privilege": privilege, "table": table})
            except DatabaseError as error:
                if error.code != SYNTAX:
                    raise
                return []
            if not int(granted):
                problems.append(
                    f"The ClickHouse user may not {privilege} on {table}. GRANT it; docs/runbook.md lists all grants."
                )
    return problems


def profile_problems(warehouse: Warehouse, memory: int) -> list[str]:
    """Which of the settings that the statements need are forbidden by the profile of the ClickHouse user."""
    if (readonly := warehouse.known["readonly"]) and not readonly.is_at(0):
        return [
            f"The ClickHouse user may only read (its profile has readonly = {readonly.value}). Give the user of "
            "posthog_clickhouse a profile with readonly = 0."
        ]
    problems = []
    if not warehouse.known["allow_ddl"].is_at(1):
        problems.append(
            "The ClickHouse user may not create tables (its profile has allow_ddl = 0), and the copy needs some. Give "
            "the user of posthog_clickhouse a profile with allow_ddl = 1."
        )
    sets: list[dict[str, Any]] = [{**REMOVING, "receive_timeout": SYNC_SECONDS}, DECIDING]
    for limit in (memory, LEAST_LIMIT):
        budget = Budget(limit)
        sets += [{"max_memory_usage": limit, **budget.insert_settings(staged=staged)} for staged in (True, False)]
        sets.append({"max_memory_usage": limit, **spilling(limit)})
    wanted = chain.from_iterable(warehouse.sent(more).items() for more in sets)
    refused = refusals(warehouse.known, chain(MARKS.items(), wanted))
    if not warehouse.known["max_memory_usage"].refusal(LEAST_LIMIT) and (told := refused.pop("max_memory_usage", None)):
        problems.append(
            f"The profile of the ClickHouse user does not allow the run's max_memory_usage: {told}. Trigger the run "
            "with a max_memory_usage that it allows."
        )
    elif warehouse.refused and not refused:  # system.settings never shows that limit or offset is fixed
        refused["refused"] = warehouse.refused
    if refused:
        problems.append(
            f"The profile of the ClickHouse user forbids what the statements must set: {'; '.join(refused.values())}. "
            "Remove these constraints from the profile, or give the user of posthog_clickhouse a profile without them."
        )
    if not problems and not warehouse.is_heard():
        problems.append(
            "The settings that this project sends with its statements do not reach ClickHouse: a proxy such as chproxy "
            "drops them, so no statement would keep to its memory limit. Name ClickHouse itself in the Airflow "
            "connection posthog_clickhouse."
        )
    return problems
