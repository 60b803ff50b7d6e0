"""Tools for the core's stories: rows by hand, dumps of both databases, and the steps of a run."""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import UUID

import pytest
from conftest import LATER, System
from pdi2.core.cluster import ours
from pdi2.core.copy import copying
from pdi2.core.copy.copying import copy_team, copy_together
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.plan import planning
from pdi2.core.report.reporting import close_run
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.switch import dual_writes, gate, old_writes
from pdi2.core.verify.verifying import verify_team, verify_together
from psycopg import sql

from demo import reader
from demo.schema import Table

MEGABYTE = 1_000_000
TEAM = 7
NO_WAIT = Settings(settle_seconds=0, read_cache_seconds=0)
ALICE, BOB, CAROL = (UUID(int=number) for number in (0xA, 0xB, 0xC))
PERSONS = {"A": ALICE, "B": BOB, "C": CAROL}
ROW_BY_HAND = {"distinct_id": "String", "person_id": "UUID", "team_id": "Int64", "_timestamp": "DateTime"}
OLD_ROW = {**ROW_BY_HAND, "_sign": "Int8", "_offset": "UInt64"}
NEW_ROW = {**ROW_BY_HAND, "is_deleted": "Int8" if LATER else "Bool", "version": "Int64"}
"""The exact types, because ClickHouse 22.12 accepts no Int8 for a Bool."""


def event(text: str, distinct_id: str | bytes = "id", team_id: int = TEAM) -> dict[str, Any]:
    """A row of the old table: `+A3` links ALICE in second 3, `-B3.1` unlinks BOB in second 3 at offset 1."""
    found = re.fullmatch(r"([+-])([ABC])(\d+)(?:\.(\d+))?", text)
    assert found, text
    sign, person, second, offset = found.groups()
    return {
        "distinct_id": distinct_id,
        "person_id": PERSONS[person],
        "team_id": team_id,
        "_timestamp": int(second),
        "_sign": int(f"{sign}1"),
        "_offset": int(offset or second),
    }


def insert_old(system: System, rows: Iterable[Mapping[str, Any]]) -> None:
    """One insert, so one part. Adds the teams to Postgres, because teams that Postgres does not know are not copied."""
    rows = list(rows)
    add_teams(system, *{row["team_id"] for row in rows})
    _insert(system, Table.OLD, OLD_ROW, rows)


def add_teams(system: System, *team_ids: int) -> None:
    query = "INSERT INTO posthog_team (id, name) SELECT unnest(%s::int[]), 'by hand' ON CONFLICT DO NOTHING"
    system.postgres.execute(query, [list(team_ids)])


def insert_new(
    system: System, person: UUID, version: int, *distinct_ids: str | bytes, is_deleted: bool = False
) -> None:
    """One insert, so one part; for the id `id` if none is named."""
    row = {"person_id": person, "team_id": TEAM, "_timestamp": 0, "is_deleted": int(is_deleted), "version": version}
    _insert(system, Table.NEW, NEW_ROW, [{**row, "distinct_id": id_} for id_ in distinct_ids or ["id"]])


def _insert(system: System, table: Table, types: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
    values = [[row[name] for name in types] for row in rows]
    system.clickhouse.insert(table, values, column_names=list(types), column_type_names=list(types.values()))


def insert_truth(
    system: System, person: UUID, version: int | None = 0, distinct_id: str = "id", team_id: int = TEAM
) -> None:
    system.postgres.execute(
        """
        WITH team AS (INSERT INTO posthog_team (id, name) VALUES (%(team)s, 'by hand') ON CONFLICT DO NOTHING),
             person AS (INSERT INTO posthog_person (team_id, uuid) VALUES (%(team)s, %(person)s) RETURNING id)
        INSERT INTO posthog_persondistinctid (team_id, distinct_id, person_id, version)
        SELECT %(team)s, %(id)s, id, %(version)s FROM person
        """,
        {"team": team_id, "person": person, "id": distinct_id, "version": version},
    )


def two_ids_each(system: System, *team_ids: int) -> None:
    """ALICE's `id` and BOB's `other` in each of the teams, and Postgres agrees."""
    for team_id in team_ids:
        insert_old(system, [event("+A1", team_id=team_id), event("+B2", "other", team_id)])
        insert_truth(system, ALICE, 0, "id", team_id)
        insert_truth(system, BOB, 0, "other", team_id)


def many_ids(
    system: System,
    count: int,
    team_id: int = TEAM,
    *,
    id_: str = "toString(number)",
    person: str = "toUUID(reinterpretAsUUID(toUInt128(number)))",
    second: str = "1000 + number",
) -> None:
    """One link per id, created in ClickHouse from expressions over `number`."""
    add_teams(system, team_id)
    system.clickhouse.command(
        "INSERT INTO person_distinct_id (team_id, distinct_id, person_id, _timestamp, _offset) "
        f"SELECT {team_id}, {id_}, {person}, {second}, number FROM numbers({count})"
    )


def merge(system: System, *tables: Table) -> None:
    """Does every merge that could ever happen, at once."""
    for table in tables or Table:
        system.clickhouse.command(f"OPTIMIZE TABLE {table} FINAL")


def stop_merges(system: System) -> None:
    """Only merges that a story asks for happen. SYSTEM STOP MERGES would stop DELETE too."""
    for table in Table:
        system.clickhouse.command(
            f"ALTER TABLE {table} MODIFY SETTING "
            "max_bytes_to_merge_at_max_space_in_pool = 1, max_bytes_to_merge_at_min_space_in_pool = 1"
        )


def seen(system: System, table: Table = Table.NEW, team_id: int = TEAM) -> dict[str, UUID]:
    """What the table's reader answers for every id of a team."""
    return reader.team_in(system.clickhouse, table, team_id)


def rows_of(system: System, table: Table) -> list[tuple[Any, ...]]:
    found = system.clickhouse.query(f"SELECT * FROM {table}", query_formats={"String": "bytes"})
    return sorted(tuple(row) for row in found.result_rows)


def dump(system: System) -> dict[str, Any]:
    """Everything that both databases hold: schemas, definitions and rows."""
    tables = system.postgres.execute(
        "SELECT table_schema, table_name FROM information_schema.tables "
        "WHERE table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2"
    ).fetchall()
    query = sql.SQL("SELECT to_jsonb(line) FROM {} AS line ORDER BY 1")
    found = {
        f"{namespace}.{name}": system.postgres.execute(query.format(sql.Identifier(namespace, name))).fetchall()
        for namespace, name in tables
    }
    created = "SELECT name, create_table_query FROM system.tables WHERE database = currentDatabase() ORDER BY name"
    definitions = system.clickhouse.query(created).result_rows
    return {
        **found,
        "schemas": system.postgres.execute("SELECT nspname FROM pg_namespace ORDER BY 1").fetchall(),
        "definitions": definitions,
        **{str(name): rows_of(system, name) for name, _ in definitions},
    }


def truth_and_old(system: System) -> dict[str, Any]:
    """Everything that the migration must never write."""
    return {
        name: rows
        for name, rows in dump(system).items()
        if name in (Table.OLD, "public.posthog_person", "public.posthog_persondistinctid")
    }


def a_range_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice ends with its first range, however quickly that is copied."""
    monkeypatch.setattr(copying, "SLICE_SECONDS", 0)
    monkeypatch.setattr(copying, "RANGES_AT_ONCE", 1)


def skip_waits(monkeypatch: pytest.MonkeyPatch, happening: Callable[[], object] = lambda: None) -> list[float]:
    """The seconds that each wait for what is in flight would take. It takes none, but `happening` happens in it."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        happening()

    monkeypatch.setattr("pdi2.core.verify.waiting.TELL_EVERY_SECONDS", float("inf"))
    monkeypatch.setattr("pdi2.core.verify.waiting.monotonic", lambda: sum(waits))
    monkeypatch.setattr("pdi2.core.verify.waiting.sleep", sleep)
    return waits


def enable(system: System, ledger: Ledger, settings: Settings = NO_WAIT) -> None:
    """The tasks that follow begin by looking which table they are connected to."""
    warehouse = system.warehouse()
    dual_writes.enable(ledger, warehouse, settings)
    ours.follow(ledger, warehouse)


def plan(system: System, ledger: Ledger, settings: Settings = NO_WAIT) -> list[int]:
    """Freezes the list of teams that are left to do, and returns them. The dual write counts as proven."""
    ledger.create()
    ledger.record("dual_writes_proven", links=0, seconds=0)
    batches = planning.freeze(ledger, system.warehouse(), settings, most_batches=1000)
    return [team_id for batch in batches for team_id in batch.team_ids]


def copy_and_verify(system: System, ledger: Ledger, *team_ids: int) -> None:
    warehouse = system.warehouse()
    for team_id in team_ids:
        copy_team(ledger, warehouse, team_id)
        verify_team(ledger, warehouse, team_id, NO_WAIT)


def migrate(system: System, ledger: Ledger, settings: Settings = NO_WAIT) -> None:
    """Every step up to the gate."""
    enable(system, ledger, settings)
    copy_and_verify(system, ledger, *plan(system, ledger, settings))


def migrate_together(system: System, ledger: Ledger, settings: Settings = NO_WAIT) -> None:
    """The same with statements that small teams share, which takes a third of the time. For what comes afterwards."""
    enable(system, ledger, settings)
    teams, warehouse = plan(system, ledger, settings), system.warehouse()
    for team_id in copy_together(ledger, warehouse, teams):
        copy_team(ledger, warehouse, team_id)
    for team_id in verify_together(ledger, warehouse, teams, NO_WAIT):
        verify_team(ledger, warehouse, team_id, NO_WAIT)


def earlier_run(system: System, *, stop_old_writes: bool = True) -> None:
    """Migrates every team and switches reads by the core alone, which is much faster than through Airflow."""
    ledger, warehouse = system.ledger("an earlier run"), system.warehouse()
    migrate_together(system, ledger)
    gate.certify(ledger, warehouse, NO_WAIT)
    gate.switch_reads(ledger, warehouse, NO_WAIT)
    if stop_old_writes:
        old_writes.stop_old_writes(ledger, warehouse, NO_WAIT)
    close_run(ledger, NO_WAIT)


def stop_old_writes(system: System, ledger: Ledger) -> None:
    old_writes.stop_old_writes(ledger, system.warehouse(), NO_WAIT)


def when_recorded(system: System, table: str, condition: str, statement: str) -> None:
    """Lets something happen in Postgres at the moment when such a row is written to a table of the ledger."""
    system.ledger().create()
    system.postgres.execute(
        f"""
        CREATE FUNCTION happen() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {statement}; RETURN NEW; END $$;
        CREATE TRIGGER happen AFTER INSERT OR UPDATE ON pdi2_migration.{table}
        FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION happen()
        """
    )


def refuse(system: System, rows: str) -> None:
    """Makes ClickHouse refuse inserts of such rows into the new table."""
    system.clickhouse.command(f"ALTER TABLE {Table.NEW} ADD CONSTRAINT refused CHECK NOT ({rows})")


def accept(system: System) -> None:
    system.clickhouse.command(f"ALTER TABLE {Table.NEW} DROP CONSTRAINT refused")


def end_session(system: System, ledger: Ledger) -> None:
    """Ends the ledger's connection to Postgres, and with it every lock, before it returns."""
    pid = ledger.connection.info.backend_pid
    system.postgres.execute("SELECT pg_terminate_backend(%s)", [pid])
    while system.postgres.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone():
        time.sleep(0.01)
    ledger.connection.close()


def until(holds: Callable[[], Any], every: float = 0.05) -> Any:
    """What `holds` returns, as soon as it is true."""
    deadline = time.monotonic() + 300
    while not (found := holds()):
        assert time.monotonic() < deadline, "waited 300 s in vain"
        time.sleep(every)
    return found


class Meanwhile(Warehouse):
    """A warehouse where something happens right after the first run of a named statement."""

    def __init__(self, system: System, statement: str, happening: Callable[[], object]) -> None:
        super().__init__(system.client, "meanwhile", Settings().max_memory_usage)
        system.opened.append(self)
        self.happened = False
        self._statement = statement
        self._happening = happening

    def rows(self, name: str, *arguments: Any) -> list[tuple[Any, ...]]:
        found = super().rows(name, *arguments)
        if name == self._statement and not self.happened:
            self.happened = True
            self._happening()
        return found


class Listening(Warehouse):
    """A warehouse that remembers its statements with their parameters."""

    def __init__(self, system: System) -> None:
        super().__init__(system.client, "listening", Settings().max_memory_usage)
        system.opened.append(self)
        self.heard: list[tuple[str, dict[str, Any]]] = []

    def rows(self, name: str, parameters: Mapping[str, Any] | None = None, *settings: Any) -> list[tuple[Any, ...]]:
        self.heard.append((name, dict(parameters or {})))
        return super().rows(name, parameters, *settings)

    def execute(self, name: str, parameters: Mapping[str, Any] | None = None, *settings: Any) -> None:
        self.heard.append((name, dict(parameters or {})))
        super().execute(name, parameters, *settings)

    @property
    def ids(self) -> set[tuple[int, bytes]]:
        """What was looked at, id by id."""
        of_ids = [parameters for name, parameters in self.heard if name == "new_of_ids"]
        keys = (key.split(":") for one in of_ids for key in one["keys"].split(","))
        return {(int(team_id), bytes.fromhex(id_)) for team_id, id_ in keys}

    @property
    def teams(self) -> set[int]:
        """What was compared as a whole."""
        return {team for name, parameters in self.heard if name == "digest_new" for team in parameters["team_ids"]}
