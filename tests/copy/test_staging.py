"""The tables that a copy creates for itself: what waits in them, what happens to it, and that none of them stays."""

from collections.abc import Mapping
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from conftest import ENGINE, LOCAL, LiveSystem, ReplicatedSystem, System
from pdi2 import sql
from pdi2.core.copy import copying, staging
from pdi2.core.copy.copying import CopyError, copy_team
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import BusyError
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import MEBIBYTE, Settings
from pdi2.core.state.slices import Slice
from stories import (
    MEGABYTE,
    TEAM,
    Meanwhile,
    a_range_a_slice,
    event,
    insert_old,
    many_ids,
    merge,
    plan,
    refuse,
    seen,
    stop_merges,
)

from demo.schema import Table

IDS = 12_000
"""Too many to be written to the new table at once."""
TABLES = "SELECT name FROM system.tables WHERE database = currentDatabase() ORDER BY name"
COPIED = "SELECT count(), uniqExact(distinct_id) FROM person_distinct_id2"


@pytest.fixture
def ledger(system: System) -> Ledger:
    return in_ranges_of_one_slice(system)


def in_ranges_of_one_slice(system: System) -> Ledger:
    """Each range has 1,000 rows."""
    stop_merges(system)
    many_ids(system, IDS)
    ledger = system.ledger()
    plan(system, ledger)
    ledger.remember_range_rows(TEAM, 1_000)
    return ledger


def answer(system: System, query: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in system.clickhouse.query(query).result_rows]


def slices(system: System) -> int:
    return system.value("SELECT count(*) FROM pdi2_migration.slice")


def test_a_slice_of_many_ranges_comes_at_once_and_leaves_no_table(system: System, ledger: Ledger) -> None:
    seen_on_the_way: list[int] = []

    class Watching(Warehouse):
        def rows(self, name: str, *arguments: Any) -> list[tuple[Any, ...]]:
            if name == "staging_parts":
                seen_on_the_way.append(answer(system, COPIED)[0][0])
            return super().rows(name, *arguments)

    with Watching(system.client, "watching", Settings().max_memory_usage) as warehouse:
        copy_team(ledger, warehouse, TEAM)

    assert len(seen_on_the_way) > 2
    assert set(seen_on_the_way) == {0}, "nothing before it is whole"
    assert slices(system) == 1
    assert answer(system, COPIED) == [(IDS, IDS)]
    assert [row[0] for row in answer(system, TABLES)] == [Table.OLD, Table.NEW]


def test_what_a_killed_copy_left_is_dropped_by_the_next_copy(system: System, ledger: Ledger) -> None:
    with pytest.raises(KeyboardInterrupt):
        copy_team(ledger, Meanwhile(system, "staging_parts", killed), TEAM)
    system.clickhouse.command("CREATE TABLE person_distinct_id2_staging_7 AS person_distinct_id2")
    system.clickhouse.command("INSERT INTO person_distinct_id2_staging_7 (team_id, distinct_id) VALUES (7, 'stale')")

    copy_team(ledger, system.warehouse(), TEAM)

    assert answer(system, COPIED) == [(IDS, IDS)]
    assert [row[0] for row in answer(system, TABLES)] == [Table.OLD, Table.NEW]


def killed() -> None:
    raise KeyboardInterrupt


def test_tables_of_killed_copies_are_found_and_dropped(system: System) -> None:
    for name in ("staging_7", "staging_minus_1_rows", "staging_of_somebody_else"):
        system.clickhouse.command(f"CREATE TABLE person_distinct_id2_{name} AS person_distinct_id2")

    staging.forget_all(system.warehouse())

    kept = [Table.OLD, Table.NEW, f"{Table.NEW}_staging_of_somebody_else"]
    assert [row[0] for row in answer(system, TABLES)] == kept


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "table"),
    [("decide_by_latest", "latest"), ("copy_decided", "target"), ("copy_simple", "target"), ("staging_attach", "")],
)
def test_rows_that_get_lost_are_noticed_and_copied(system: System, ledger: Ledger, statement: str, table: str) -> None:
    """They get lost in a helper, in the staging table, or on the way from there to the new table."""
    insert_old(system, [event("+A20000", str(number)) for number in range(0, 4_000, 2)])

    class Losing(Warehouse):
        lost = False

        def execute(self, name: str, parameters: Mapping[str, Any] | None = None, *more: Any) -> None:
            super().execute(name, parameters, *more)
            self.lose(name, parameters)

        def define(self, name: str, parameters: Mapping[str, Any]) -> None:
            super().define(name, parameters)
            self.lose(name, parameters)

        def lose(self, name: str, parameters: Mapping[str, Any] | None) -> None:
            if name == statement and not self.lost:
                self.lost = True
                there = (parameters or {}).get(table, Table.NEW)
                [part] = answer(system, f"SELECT _part FROM {there} LIMIT 1")[0]
                system.clickhouse.command(f"ALTER TABLE {there} DROP PART '{part}'")

    with Losing(system.client, "losing", Settings().max_memory_usage) as warehouse:
        copy_team(ledger, warehouse, TEAM)

    assert warehouse.lost
    assert len(seen(system)) == IDS


@pytest.mark.slow
def test_many_complex_ids_are_decided_in_parts_and_go_by_the_rule_in_steps(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying.Budget, "deciding_rows", 700)
    monkeypatch.setattr(copying.Budget, "rule_rows", 700)
    insert_old(system, [event("+B20000", str(number)) for number in range(0, 4_000, 2)])
    insert_old(system, [event("-B20001", str(number)) for number in range(0, 4_000, 2)])
    parts, steps = [], set()

    class Counting(Warehouse):
        def execute(self, name: str, parameters: Mapping[str, Any] | None = None, *more: Any) -> None:
            given = parameters or {}
            parts.extend([given["lower"]] if name == "decide_by_latest" else [])
            steps.update([given["step"]] if name == "copy_by_rule" else [])
            super().execute(name, parameters, *more)

    with Counting(system.client, "counting", Settings().max_memory_usage) as warehouse:
        copy_team(ledger, warehouse, TEAM)

    assert len(parts) > 2
    assert len(steps) > 2
    merge(system, Table.NEW)
    assert len(seen(system)) == IDS


@pytest.mark.slow
@pytest.mark.skipif(bool(ENGINE), reason="the servers that faults are injected into are of this engine alone")
def test_what_a_failing_slice_had_finished_is_a_checkpoint(live: LiveSystem) -> None:
    many_ids(live, IDS)
    ledger = live.ledger()
    plan(live, ledger)
    ledger.remember_range_rows(TEAM, 1_000)
    text = "(total) memory limit exceeded: would use 9.01 GiB, maximum: 9.00 GiB"
    live.server.inject(
        {
            "match": "INSERT INTO person_distinct_id2_staging_7\n",
            "skip": 1,
            "action": "error",
            "code": 241,
            "text": text,
        }
    )

    with pytest.raises(BusyError, match="100 MB instead of 200 MB"):
        copy_team(ledger, live.warehouse(), TEAM)

    assert slices(live) == 1
    [(done, ids)] = answer(live, COPIED)
    assert 0 < done == ids < IDS
    copy_team(ledger, live.warehouse(), TEAM)
    assert answer(live, COPIED) == [(IDS, IDS)], "no row twice"
    assert [row[0] for row in answer(live, TABLES)] == [Table.OLD, Table.NEW]


@pytest.mark.skipif(bool(ENGINE), reason="the servers that can be restarted are of this engine alone")
def test_a_server_that_restarts_within_a_slice_forgets_no_complex_id(live: LiveSystem) -> None:
    stop_merges(live)
    many_ids(live, IDS)
    insert_old(live, [event("+A1", "gone")])
    insert_old(live, [event("-A2", "gone")])
    ledger = live.ledger()
    plan(live, ledger)

    copy_team(ledger, Meanwhile(live, "complex_set_bytes", live.server.restart), TEAM)

    assert answer(live, COPIED) == [(IDS, IDS)]


@pytest.mark.slow
def test_what_the_set_of_complex_ids_takes_the_statements_may_not(system: System, ledger: Ledger) -> None:
    insert_old(system, [event("-A20000", str(number)) for number in range(1_000)])
    set_aside: dict[str, int] = {}

    class Looking(Warehouse):
        def execute(self, name: str, *more: Any) -> None:
            set_aside[name] = self.set_aside
            super().execute(name, *more)

    with Looking(system.client, "looking", Settings().max_memory_usage) as warehouse:
        copy_team(ledger, warehouse, TEAM)
        assert set_aside["detect_complex"] == 0
        assert set_aside["decide_by_latest"] == set_aside["copy_simple"] > 0
        warehouse.set_aside = warehouse.max_memory_usage - MEGABYTE
        with pytest.raises(DatabaseError, match="MEMORY_LIMIT_EXCEEDED"):
            warehouse.command("SELECT groupArray(toString(number)) FROM numbers(10000000)")


@pytest.mark.skipif(LOCAL, reason="clickhouse-local of before 24 does not tell its parts")
def test_the_slice_ends_where_the_new_table_has_no_room_for_more_parts(
    system: System, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdi2.core.cluster.pressure.WAIT_IN_SLOT_SECONDS", 0)
    monkeypatch.setattr("pdi2.core.cluster.pressure.LOOK_EVERY_SECONDS", 0)
    system.clickhouse.command("ALTER TABLE person_distinct_id2 MODIFY SETTING parts_to_delay_insert = 2")
    with pytest.raises(BusyError, match="parts in a partition, and from 2 on inserts are delayed"):
        copy_team(ledger, system.warehouse(), TEAM)
    assert slices(system) == 2
    system.clickhouse.command("ALTER TABLE person_distinct_id2 MODIFY SETTING parts_to_delay_insert = 1000")
    copy_team(ledger, system.warehouse(), TEAM)
    assert len(seen(system)) == IDS


@pytest.mark.parametrize("memory", [50 * MEBIBYTE, 200 * MEGABYTE, 2_000 * MEGABYTE, 64 * 1024 * MEBIBYTE])
def test_no_memory_limit_makes_more_parts_at_once_than_the_new_table_takes(memory: int) -> None:
    """ClickHouse looks at parts_to_throw_insert before an INSERT, and never within one. Until 23.5 it was 300."""
    budget = copying.Budget(memory)
    least = budget.insert_settings(staged=True)["min_insert_block_size_bytes"]
    assert copying.RANGES_AT_ONCE * budget.range_rows * 100 / least <= 300


@pytest.mark.slow
@pytest.mark.skipif(bool(ENGINE), reason="in the older engines no merge goes on in the background")
def test_ids_that_make_many_parts_are_handed_over_a_few_ranges_at_a_time(system: System) -> None:
    """Each of five ranges makes about 8 parts, all five more than ClickHouse takes."""
    system.clickhouse.command(
        "ALTER TABLE person_distinct_id2 MODIFY SETTING parts_to_delay_insert = 20, parts_to_throw_insert = 24"
    )
    many_ids(system, 300_000, id_="concat(toString(number), repeat('x', 390))")
    ledger = system.ledger()
    plan(system, ledger)
    ledger.remember_range_rows(TEAM, 60_000)
    handed_over: list[int] = []

    class Counting(Warehouse):
        def define(self, name: str, parameters: Mapping[str, Any]) -> None:
            if name == "staging_attach":
                handed_over.append(staging.waiting(self, staging.Tables(parameters["target"], "", "", "", ""))[1])
            super().define(name, parameters)

    with Counting(system.client, "counting", 50 * MEBIBYTE) as warehouse:
        copy_team(ledger, warehouse, TEAM)

    assert max(handed_over) <= 20
    assert answer(system, COPIED) == [(300_000, 300_000)]


@pytest.mark.slow
@pytest.mark.parametrize("change", ["PARTITION BY team_id % 8 ORDER BY", "PRIMARY KEY team_id ORDER BY"])
def test_a_table_that_parts_cannot_be_handed_to_is_written_directly(
    system: System,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: str,
) -> None:
    a_range_a_slice(monkeypatch)
    [created] = answer(system, "SHOW CREATE TABLE person_distinct_id2")[0]
    system.clickhouse.command("DROP TABLE person_distinct_id2 SYNC")
    system.clickhouse.command(created.replace("ORDER BY", change))
    copy_team(ledger, system.warehouse(), TEAM)

    assert slices(system) > 2
    assert answer(system, COPIED) == [(IDS, IDS)]
    if change.startswith("PARTITION"):
        assert "Copies are written to person_distinct_id2 directly, which is slower" in caplog.text
    assert [row[0] for row in answer(system, TABLES)] == [Table.OLD, Table.NEW]


@pytest.mark.parametrize("team_id", [7, -7, 2**62])
def test_every_team_has_a_name_that_is_an_identifier(system: System, team_id: int) -> None:
    with staging.tables_for(system.warehouse(), Slice(team_id, b"", None), rows=10**6) as tables:
        assert tables.staged
        assert (tables.target,) in answer(system, TABLES)
    assert len(answer(system, TABLES)) == 2


@pytest.mark.parametrize("name", ["a b", "a`b", "a;DROP TABLE x", "", "1a", "größe", "A.b"])
def test_an_identifier_that_would_need_quotes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="would need quotes"):
        sql.clickhouse("drop", {"table": name})


def test_a_copy_that_fails_says_so_and_leaves_no_table(system: System, ledger: Ledger) -> None:
    refuse(system, "team_id = 7")
    with pytest.raises(CopyError, match="VIOLATED_CONSTRAINT"):
        copy_team(ledger, system.warehouse(), TEAM)
    assert [row[0] for row in answer(system, TABLES)] == [Table.OLD, Table.NEW]
    assert answer(system, COPIED) == [(0, 0)]


@pytest.fixture
def replicated_ledger(replicated: ReplicatedSystem) -> Ledger:
    return in_ranges_of_one_slice(replicated)


def copied_on(system: ReplicatedSystem) -> list[list[tuple[Any, ...]]]:
    return [[tuple(row) for row in client.query(COPIED).result_rows] for client in system.replicas]


def test_a_slice_of_a_replicated_table_is_handed_over_and_every_replica_has_it(
    replicated: ReplicatedSystem, replicated_ledger: Ledger
) -> None:
    staged: list[tuple[Any, ...]] = []

    class Watching(Warehouse):
        def define(self, name: str, *arguments: Any) -> None:
            if name.startswith("staging_attach"):
                staged.append(answer(replicated, STAGED)[0])
            super().define(name, *arguments)

    with Watching(replicated.client, "watching", Settings().max_memory_usage) as warehouse:
        copy_team(replicated_ledger, warehouse, TEAM)

    engine = "ReplacingMergeTree(version) ORDER BY (team_id, distinct_id) SETTINGS index_granularity = 512"
    [(definition, waiting)] = staged
    assert definition.startswith(f"{engine}, max_bytes_to_merge")
    assert waiting == IDS
    assert copied_on(replicated) == [[(IDS, IDS)]] * 3
    assert slices(replicated) == 1
    for client in replicated.replicas:
        assert [row[0] for row in client.query(TABLES).result_rows] == [Table.OLD, Table.NEW]


TAKE_AWAY = "ALTER TABLE person_distinct_id2 DELETE WHERE 1 SETTINGS mutations_sync = 2"
"""TRUNCATE and DROP PARTITION make ClickHouse forget what it attached."""
STAGED = """
    SELECT engine_full, total_rows
    FROM system.tables
    WHERE database = currentDatabase() AND name = 'person_distinct_id2_staging_7'
"""


@pytest.mark.slow
def test_what_was_copied_taken_away_and_copied_again_is_there(
    replicated: ReplicatedSystem, replicated_ledger: Ledger
) -> None:
    """ClickHouse remembers the content of attached parts (`blocks/all_replace_from_...`), and skips a repetition. Seen
    on 26.9 with any settings of deduplication."""

    def attached_again(stamp: int) -> int:
        """What a copy without a stamp of its own would give."""
        replicated.clickhouse.command(TAKE_AWAY)
        replicated.clickhouse.command("CREATE TABLE staged AS person_distinct_id2 ENGINE = ReplacingMergeTree(version) "
                                      "ORDER BY (team_id, distinct_id) SETTINGS index_granularity = 512")  # fmt: skip
        replicated.clickhouse.command(f"INSERT INTO staged (team_id, distinct_id, _partition) VALUES (1, 'a', {stamp})")
        replicated.clickhouse.command("ALTER TABLE person_distinct_id2 ATTACH PARTITION tuple() FROM staged")
        replicated.clickhouse.command("DROP TABLE staged SYNC")
        return int(answer(replicated, COPIED)[0][0])

    assert [attached_again(0), attached_again(0), attached_again(1)] == [1, 0, 1], "ClickHouse does leave it out"
    for _ in range(2):
        replicated.clickhouse.command(TAKE_AWAY)
        replicated.postgres.execute("DELETE FROM pdi2_migration.slice")
        copy_team(replicated_ledger, replicated.warehouse(), TEAM)
        assert copied_on(replicated) == [[(IDS, IDS)]] * 3
    assert answer(replicated, "SELECT uniqExact(_partition), min(_partition) > 0 FROM person_distinct_id2") == [(1, 1)]


def test_copies_on_a_plain_table_carry_no_stamp(system: System, ledger: Ledger) -> None:
    copy_team(ledger, system.warehouse(), TEAM)
    assert answer(system, "SELECT DISTINCT _partition FROM person_distinct_id2") == [(0,)]


@pytest.mark.parametrize(
    "away",
    [
        "DETACH TABLE person_distinct_id2",
        pytest.param("SYSTEM STOP REPLICATION QUEUES person_distinct_id2", marks=pytest.mark.slow),
    ],
)
def test_a_slice_is_finished_though_a_replica_is_away_or_does_not_fetch(
    replicated: ReplicatedSystem,
    replicated_ledger: Ledger,
    followed_soon: Any,
    caplog: pytest.LogCaptureFixture,
    away: str,
) -> None:
    third = replicated.replicas[2]
    third.command(away)

    copy_team(replicated_ledger, replicated.warehouse(), TEAM)

    assert "The other replicas do not have everything" in caplog.text
    assert slices(replicated) == 1
    assert answer(replicated, COPIED) == [(IDS, IDS)], "and no id twice"
    third.command(away.replace("DETACH", "ATTACH").replace("STOP", "START"))
    third.command("SYSTEM SYNC REPLICA person_distinct_id2")
    assert copied_on(replicated) == [[(IDS, IDS)]] * 3


def test_a_slice_that_merges_before_the_others_follow_is_looked_at_id_by_id(
    replicated: ReplicatedSystem, replicated_ledger: Ledger, followed_soon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had been copied by a task that was killed, so no more rows are there than before. A link that has reached the
    old table alone does not mean that the slice was not handed over."""
    copy_team(replicated_ledger, replicated.warehouse(), TEAM)
    replicated.postgres.execute("DELETE FROM pdi2_migration.slice")
    third = replicated.replicas[2]
    third.command("SYSTEM STOP REPLICATION QUEUES person_distinct_id2")

    def merged(*arguments: Any) -> Any:
        failure = staging.hand_over(*arguments)
        replicated.clickhouse.command("OPTIMIZE TABLE person_distinct_id2 FINAL SETTINGS alter_sync = 1")
        insert_old(replicated, [event("+A7", "late")])
        return failure

    monkeypatch.setattr("pdi2.core.copy.copying.hand_over", merged)
    copy_team(replicated_ledger, replicated.warehouse(), TEAM)

    assert slices(replicated) == 1
    third.command("SYSTEM START REPLICATION QUEUES person_distinct_id2")
    third.command("SYSTEM SYNC REPLICA person_distinct_id2")
    assert copied_on(replicated) == [[(IDS + 1, IDS + 1)]] * 3
