"""The new table as installations have it: both releases' DDL, with what fills it, projections and mutations."""

import pytest
from conftest import ENGINE, LATER, System
from pdi2.core.engines.failures import BusyError, Reaction, reaction
from pdi2.core.plan.preflight import PreflightError, Verdict, check
from pdi2.core.state.settings import Settings
from stories import (
    ALICE,
    BOB,
    CAROL,
    NO_WAIT,
    TEAM,
    event,
    insert_new,
    insert_old,
    insert_truth,
    many_ids,
    merge,
    migrate,
    seen,
    stop_merges,
)

from demo import schema

PROJECTION = "ALTER TABLE person_distinct_id2 ADD PROJECTION by_person (SELECT person_id, count() GROUP BY person_id)"


@pytest.fixture(params=[LATER] if ENGINE else [False, True], ids=lambda later: "1.34" if later else "1.33")
def form(system: System, request: pytest.FixtureRequest) -> System:
    """Both forms on the engine of this process, whatever form other tests use. On another engine, PDI2_DDL's form."""
    if request.param != LATER:
        for table in schema.Table:
            system.clickhouse.command(f"DROP TABLE {table} SYNC")
        schema.create_clickhouse(system.clickhouse, request.param)
    return system


def what_repairs_repair(system: System) -> None:
    """An id of each kind, tombstones among them, and a tie that only a DELETE can end."""
    insert_old(system, [event("+A1", "copied"), event("+A1", "gone"), event("+B2", "stale")])
    for person, version, name in ((ALICE, 0, "copied"), (ALICE, 2, "missing"), (BOB, 3, "stale"), (CAROL, 4, "tied"),
                                  (CAROL, 5, "buried")):  # fmt: skip
        insert_truth(system, person, version, name)
    insert_new(system, ALICE, 1, "stale")
    insert_new(system, ALICE, 7, "resurrected")
    for person in (ALICE, BOB, CAROL):
        insert_new(system, person, 4, "tied")
    insert_new(system, CAROL, 4, "tied", is_deleted=True)
    insert_new(system, CAROL, 5, "buried", is_deleted=True)


RIGHT = {"copied": ALICE, "missing": ALICE, "stale": BOB, "tied": CAROL, "buried": CAROL}


def test_every_repair_holds_on_both_forms(form: System) -> None:
    """Repairs name rows by their values, and a Bool must not be written as `true` in such a name."""
    what_repairs_repair(form)
    migrate(form, form.ledger())

    assert seen(form) == RIGHT
    merge(form, schema.Table.NEW)
    assert seen(form) == RIGHT
    kinds = form.postgres.execute("SELECT distinct_id, kind FROM pdi2_migration.finding WHERE repaired").fetchall()
    assert {name for name, _ in kinds} == {"missing", "stale", "tied", "buried", "resurrected", "gone"}


@pytest.mark.skipif(
    bool(ENGINE), reason="projections of a ReplacingMergeTree came after 24.8, and 26.9 is what has both"
)
def test_a_table_with_projections_is_copied_and_repaired(form: System) -> None:
    """Such a table refuses a lightweight DELETE (344). ALTER TABLE's DELETE works, and projections stay right."""
    form.clickhouse.command(
        "ALTER TABLE person_distinct_id2 MODIFY SETTING deduplicate_merge_projection_mode = 'rebuild'"
    )
    form.clickhouse.command(PROJECTION)
    stop_merges(form)
    what_repairs_repair(form)
    many_ids(form, 12_000, 8)  # so many wait in a staging table
    migrate(form, form.ledger(), Settings(settle_seconds=0, read_cache_seconds=0, repair=True, team_ids=(TEAM,)))

    assert seen(form) == RIGHT
    count = "SELECT person_id, count() FROM person_distinct_id2 GROUP BY person_id ORDER BY person_id SETTINGS "
    with_projection = form.clickhouse.query(f"{count} optimize_use_projections = 1, force_optimize_projection = 1")
    assert with_projection.result_rows == form.clickhouse.query(f"{count} optimize_use_projections = 0").result_rows


def test_what_fills_the_tables_is_left_alone(form: System) -> None:
    """PostHog's kafka_* tables and materialized views fill them. (Without a broker, this engine shuts Kafka tables down
    with an error. A Null table stands for each of them, and a row that is inserted there for a message.)
    """
    for table, columns in (
        ("person_distinct_id", "distinct_id, person_id, team_id, _sign, _timestamp, _offset"),
        ("person_distinct_id2", "team_id, distinct_id, person_id, is_deleted, version, _timestamp, _offset"),
    ):
        form.clickhouse.command(
            f"CREATE TABLE kafka_{table} ENGINE = Null AS SELECT {columns} FROM {table} WHERE false"
        )
        form.clickhouse.command(
            f"CREATE MATERIALIZED VIEW {table}_mv TO {table} AS SELECT {columns} FROM kafka_{table}"
        )
    what_repairs_repair(form)
    assert check(form.ledger(), form.warehouse(), NO_WAIT, []).verdict is Verdict.MIGRATE
    migrate(form, form.ledger())
    assert seen(form) == RIGHT

    columns = ["team_id", "distinct_id", "person_id", "is_deleted", "version", "_timestamp", "_offset"]
    form.clickhouse.insert("kafka_person_distinct_id2", [[TEAM, "copied", BOB, 0, 1, 9, 0]], column_names=columns)
    form.clickhouse.insert("kafka_person_distinct_id2", [[TEAM, "stale", BOB, 1, 4, 9, 0]], column_names=columns)
    now = {**RIGHT, "copied": BOB}
    del now["stale"]
    assert seen(form) == now


@pytest.mark.skipif(bool(ENGINE), reason="there no mutation outlives its statement")
def test_an_unfinished_mutation_is_waited_for_and_a_failed_one_is_reported(system: System) -> None:
    insert_old(system, [event("+A1")])
    insert_truth(system, ALICE)
    insert_new(system, ALICE, 0)
    alter = "ALTER TABLE person_distinct_id2"
    system.clickhouse.command("SYSTEM STOP MERGES person_distinct_id2")
    system.clickhouse.command(f"{alter} DELETE WHERE team_id = 5", settings={"mutations_sync": 0})
    with pytest.raises(BusyError, match="carrying out 1 mutation.*DELETE WHERE team_id = 5") as waiting:
        check(system.ledger(), system.warehouse(), Settings(), [])
    assert reaction(waiting.value) is Reaction.RETRY
    assert check(system.ledger(), system.warehouse(), Settings(dry_run=True), []).verdict is Verdict.PLAN_ONLY

    system.clickhouse.command("SYSTEM START MERGES person_distinct_id2")
    system.clickhouse.command(f"{alter} DELETE WHERE team_id = 5", settings={"mutations_sync": 2})
    assert check(system.ledger(), system.warehouse(), Settings(), []).verdict is Verdict.MIGRATE

    with pytest.raises(Exception, match="no such luck"):
        system.clickhouse.command(
            f"{alter} UPDATE _offset = throwIf(1, 'no such luck') WHERE 1", settings={"mutations_sync": 2}
        )
    with pytest.raises(
        PreflightError, match=r"mutation \S+ of person_distinct_id2 fails: .*no such luck.*KILL MUTATION"
    ):
        check(system.ledger(), system.warehouse(), Settings(), [])
    system.clickhouse.command(f"KILL MUTATION WHERE database = '{system.database}'")


def test_views_that_would_see_only_part_of_the_copy_are_reported(system: System) -> None:
    assert "Materialized views" not in check(system.ledger(), system.warehouse(), Settings(), []).message
    system.clickhouse.command(
        "CREATE MATERIALIZED VIEW ids_per_team ENGINE = SummingMergeTree ORDER BY team_id "
        "AS SELECT team_id, count() AS ids FROM person_distinct_id2 GROUP BY team_id"
    )
    told = f"Materialized views read person_distinct_id2: {system.database}.ids_per_team."
    assert told in check(system.ledger(), system.warehouse(), Settings(), []).message
