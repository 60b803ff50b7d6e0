"""The live application reads what is right, whatever happens to its databases, and it notices what is wrong."""

import math
from typing import Any

import psycopg
import pytest
from conftest import LiveSystem
from stories import ALICE, add_teams, insert_truth, until

from demo import traffic
from demo.chaos import KINDS, drawn
from demo.live_reader import LiveReader
from demo.live_writer import Habits
from demo.schema import Table
from demo.seed import seed
from demo.switches import READS, WRITES, set_switch
from demo.topic import Topic

RATE = 100


@pytest.fixture
def dual(live: LiveSystem) -> LiveSystem:
    """Three teams without ids, and every writer writes both tables."""
    add_teams(live, 1, 2, 3)
    set_switch(live.postgres, WRITES, "both")
    return live


def running(system: LiveSystem, **options: Any) -> Any:
    return traffic.running(
        system.uri, system.server.port, system.server.password, clickhouse_database=system.database,
        rate=RATE, writers=1, flush_seconds=0.2, cache_seconds=0.2, **options,
    )  # fmt: skip


def written(system: LiveSystem) -> int:
    with psycopg.connect(system.uri, autocommit=True) as postgres:
        [[count]] = postgres.execute("SELECT coalesce(max(id), 0) FROM posthog_persondistinctid").fetchall()
    return count


def after_more_writes(system: LiveSystem) -> None:
    """Waits until more ids were created, which takes longer if a database was away."""
    wanted = written(system) + RATE // 2
    until(lambda: written(system) >= wanted)


def clickhouse_dies(system: LiveSystem) -> None:
    system.server.kill()
    system.server.start()


def connections_are_cut(system: LiveSystem, times: int = 5) -> None:
    system.server.inject({"match": "INSERT", "action": "cut_after", "times": times})


def switch_reads(system: LiveSystem) -> None:
    set_switch(system.postgres, READS, "new")


@pytest.mark.slow
def test_nobody_reads_a_wrong_person_through_restarts_and_a_switch(dual: LiveSystem) -> None:
    with running(dual, also=["stale:1", "clock:-300"]) as live:
        for happening in (
            clickhouse_dies,
            connections_are_cut,
            switch_reads,
            LiveSystem.restart_postgres,
            clickhouse_dies,
        ):
            after_more_writes(dual)
            happening(dual)
        after_more_writes(dual)
        summary = live.end()

    assert (summary["sound"], summary["wrong"], summary["undelivered"]) == (True, 0, 0)
    assert summary["writes"] > 3 * RATE
    for name in ("create", "identify", "merge", "postgres_lost"):
        assert summary[name], name
    assert summary["repeated_inserts"] >= 5
    assert [table for _, table in summary["read_since"]] == [*Table]
    assert summary["reads"] == sum(summary[f"reads of {table}"] for table in Table)
    assert dual.disagreements(Table.OLD) == dual.disagreements(Table.NEW) == {}


@pytest.mark.slow
def test_what_a_deaf_writer_spoils_is_counted_as_wrong(dual: LiveSystem) -> None:
    with running(dual, also=["deaf"]) as live:
        after_more_writes(dual)
        switch_reads(dual)
        after_more_writes(dual)
        summary = live.end()

    assert summary["sound"]
    assert summary["wrong"] > 0
    assert summary["examples"][0]["table"] == Table.NEW
    assert dual.disagreements(Table.OLD) == {}
    assert dual.disagreements(Table.NEW) != {}


@pytest.mark.slow
def test_deletions_of_which_clickhouse_is_not_told_are_no_wrong_answers_and_their_ids_come_back(
    dual: LiveSystem,
) -> None:
    with running(dual, also=["silent"]) as live:
        after_more_writes(dual)
        switch_reads(dual)
        for _ in range(3):
            after_more_writes(dual)
        summary = live.end()

    assert (summary["sound"], summary["wrong"], summary["undelivered"]) == (True, 0, 0)
    for name in ("delete_silently", "create_again", "past_life"):
        assert summary[name], name
    noted = dual.postgres.execute("SELECT team_id, distinct_id FROM demo_past_life").fetchall()
    for table in Table:
        wrong = {(team_id, id_) for team_id, ids in dual.disagreements(table).items() for id_ in ids}
        assert wrong
        assert wrong <= {*noted}, table


def test_ids_that_were_there_before_are_read_unless_the_old_table_is_wrong_about_them(live: LiveSystem) -> None:
    seed(live.postgres, live.clickhouse, rows=3_000, teams=3)
    insert_truth(live, ALICE, distinct_id="")  # surely in the sample, and only in Postgres
    reader = LiveReader(lambda: psycopg.connect(live.uri, autocommit=True), live.client, cache_seconds=0, seed=1)
    reader.step(low_water=math.inf)
    reader.end()

    assert reader.counts["old_table_wrong_at_first"] >= 1
    assert reader.counts["reads"] > 50
    assert not reader.counts["wrong"]


def test_an_insert_that_ran_before_its_connection_was_cut_counts_as_repeated(live: LiveSystem) -> None:
    add_teams(live, 1)
    writer = live.writer()
    writer.create(1, "alice")
    connections_are_cut(live, times=1)
    topic = Topic(Table.OLD, live.client, "a seed", flush_seconds=0)
    topic.queue.extend((0, message) for message in writer.outbox if message.table is Table.OLD)
    topic.ending.set()
    topic.run()

    assert topic.repeated == {(1, "alice")}
    assert topic.counts == {"failed_inserts": 1, "repeated_inserts": 1, f"rows of {Table.OLD}": 1}


def test_a_habit_is_understood_or_refused() -> None:
    assert Habits.parse("clock:-300") == Habits(clock_ahead=-300)
    assert Habits.parse("stale:9") == Habits(cache_seconds=9)
    assert Habits.parse("deaf").deaf
    assert Habits.parse("silent").silent
    with pytest.raises(ValueError, match="lazy"):
        Habits.parse("lazy")


def test_the_same_seed_draws_the_same_mishaps() -> None:
    assert drawn(7, 30) == drawn(7, 30) != drawn(8, 30)
    assert {mishap.kind for mishap in drawn(7, len(KINDS))} == {*KINDS}
