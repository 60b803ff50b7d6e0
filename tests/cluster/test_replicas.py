"""Three replicas in one process, with ClickHouse's TestKeeper: what a migration waits for, reports and refuses."""

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError
from conftest import ReplicatedSystem
from pdi2 import sql
from pdi2.core.cluster import ours, pressure, replicas
from pdi2.core.copy.copying import copy_team
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.failures import MigrationError, WaitError
from pdi2.core.engines.statement_settings import CONSISTENT
from pdi2.core.plan import cluster_checks
from pdi2.core.plan.clickhouse_checks import table_problems
from pdi2.core.report import certificate, watching
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.switch import gate, old_writes
from pdi2.core.verify import auditing
from pdi2.core.verify.verifying import verify_team
from stories import (
    ALICE,
    BOB,
    NO_WAIT,
    TEAM,
    Meanwhile,
    add_teams,
    enable,
    event,
    insert_new,
    insert_old,
    insert_truth,
    plan,
    rows_of,
    seen,
    two_ids_each,
    until,
)

from demo import reader, schema
from demo.schema import Table


@pytest.fixture
def proven(replicated: ReplicatedSystem, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """The ledger of a planned team, which the tests copy and verify step by step. Every wait ends after one look."""
    monkeypatch.setattr(pressure, "WAIT_IN_SLOT_SECONDS", 0)
    monkeypatch.setattr(pressure, "LOOK_EVERY_SECONDS", 0)
    monkeypatch.setattr(ours, "SYNC_SECONDS", 1)
    insert_old(replicated, [event("+A1", "early"), event("+A2", "late")])
    for distinct_id in ("early", "late"):
        insert_truth(replicated, ALICE, 0, distinct_id)
    ledger = replicated.ledger()
    enable(replicated, ledger)
    plan(replicated, ledger)
    ledger.record("planned")
    ours.follow(ledger, replicated.warehouse())
    return ledger


def prove(replicated: ReplicatedSystem, ledger: Ledger) -> None:
    copy_team(ledger, replicated.warehouse(), TEAM)
    verify_team(ledger, replicated.warehouse(), TEAM, NO_WAIT)
    gate.certify(ledger, replicated.warehouse(), NO_WAIT)


def ids_on(client: Client) -> int:
    return int(client.query(f"SELECT uniqExact(distinct_id) FROM {Table.NEW}").result_rows[0][0])


def test_reads_switch_once_every_replica_has_what_is_verified(replicated: ReplicatedSystem, proven: Ledger) -> None:
    """Two replicas of three are a quorum, and the third fetches nothing."""
    third = replicated.replicas[2]
    third.command(f"SYSTEM STOP FETCHES {Table.NEW}")
    prove(replicated, proven)
    assert [ids_on(client) for client in replicated.replicas] == [2, 2, 0]
    told = certificate.for_approval(proven, NO_WAIT)
    assert "| Replica r1-01 | compared with Postgres |\n| Replica r2-01 | has everything |" in told
    assert "| Replica r3-01 | lacks 1 part |" in told

    with pytest.raises(WaitError, match="replica r3-01 of .*person_distinct_id2 lacks 1 part of what is copied"):
        gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)
    assert replicated.switches()["reads"] == "old"

    third.command(f"SYSTEM START FETCHES {Table.NEW}")
    third.command(f"SYSTEM SYNC REPLICA {Table.NEW}")
    gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)
    assert replicated.switches()["reads"] == "new"
    assert [ids_on(client) for client in replicated.replicas] == [2, 2, 2]
    at_the_switch = (proven.latest("reads_switched") or {})["replicas"]
    assert [(one["name"], one["active"], one["here"], one["lacks"]) for one in at_the_switch] == [
        ("r1-01", True, True, 0),
        ("r2-01", True, False, 0),
        ("r3-01", True, False, 0),
    ]


def test_a_replica_that_has_not_merged_yet_does_not_hold_the_switch_up(
    replicated: ReplicatedSystem, proven: Ledger
) -> None:
    """It has every row, in smaller parts."""
    _, second, third = replicated.replicas
    second.command(f"SYSTEM STOP MERGES {Table.NEW}")
    prove(replicated, proven)
    insert_new(replicated, ALICE, 0, "early")
    for client in (second, third):
        client.command(f"SYSTEM SYNC REPLICA {Table.NEW} LIGHTWEIGHT")
    replicated.clickhouse.command(f"OPTIMIZE TABLE {Table.NEW} FINAL")
    [[merged]] = replicated.clickhouse.query(sql.clickhouse("parts_of_new")).result_rows
    assert merged not in second.query(sql.clickhouse("parts_of_new")).result_columns[0]

    gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)
    assert replicated.switches()["reads"] == "new"


def test_a_replica_that_is_registered_and_gone_holds_the_switch_up(
    replicated: ReplicatedSystem, proven: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once that replica is back, it would answer with nothing."""
    third = replicated.replicas[2]
    for table in Table:
        third.command(f"DETACH TABLE {table}")
    prove(replicated, proven)
    remedy = f"r3-01 .* is away: .*SYSTEM DROP REPLICA 'r3-01' FROM TABLE {Table.NEW}, and the same for {Table.OLD}"
    with pytest.raises(WaitError, match=remedy):
        gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)
    monkeypatch.setattr(replicas, "PATIENCE_SECONDS", 0)
    with pytest.raises(replicas.ReplicaError, match=remedy):
        gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)
    assert replicated.switches()["reads"] == "old"

    for table in Table:
        replicated.clickhouse.command(f"SYSTEM DROP REPLICA 'r3-01' FROM TABLE {table}")
    gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)
    assert replicated.switches()["reads"] == "new"


def test_a_replica_that_is_away_with_everything_holds_the_switch_up_too(
    replicated: ReplicatedSystem, proven: Ledger
) -> None:
    """Its disk may be older once it is back. ClickHouse fetches what is gone, and answers readers meanwhile."""
    third = replicated.replicas[2]
    prove(replicated, proven)
    third.command(f"SYSTEM SYNC REPLICA {Table.NEW}")
    where = "SELECT arrayJoin(data_paths) FROM system.tables WHERE database = currentDatabase() AND name = "
    directory = Path(str(third.command(f"{where}'{Table.NEW}'")))
    third.command(f"DETACH TABLE {Table.NEW}")
    for part in directory.glob("all_*"):
        shutil.rmtree(part)
    with pytest.raises(WaitError, match="r3-01 .* had what .*, but its disk .*, and is away: .*DROP REPLICA 'r3-01'"):
        gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)

    replicated.server.exchange(refuse=True)
    third.command(f"ATTACH TABLE {Table.NEW}")
    assert ids_on(third) == 0
    with pytest.raises(WaitError, match="r3-01 .* lacks . parts? of what is copied"):
        gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)
    assert replicated.switches()["reads"] == "old"

    replicated.server.exchange(refuse=False)
    third.command(f"SYSTEM SYNC REPLICA {Table.NEW}")
    gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)
    assert ids_on(third) == 2


def test_old_writes_go_on_while_some_replica_lacks_what_came_since_the_switch(
    replicated: ReplicatedSystem, proven: Ledger
) -> None:
    """Its readers get wrong answers, and after old writes there is no way back."""
    third = replicated.replicas[2]
    prove(replicated, proven)
    third.command(f"SYSTEM SYNC REPLICA {Table.NEW}")
    gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)
    third.command(f"SYSTEM STOP FETCHES {Table.NEW}")
    insert_new(replicated, ALICE, 0, "since the switch")

    for _ in range(2):
        with pytest.raises(WaitError, match="The end of old writes has waited .*: replica r3-01 .* lacks 1 part"):
            old_writes.stop_old_writes(proven, replicated.warehouse(), NO_WAIT)
    assert replicated.switches()["writes"] == "both"
    [(reason,)] = replicated.postgres.execute(
        "SELECT detail ->> 'reason' FROM pdi2_migration.event WHERE what = 'old_writes_put_off'"
    ).fetchall()
    assert re.fullmatch("replica r3-01 .* So old writes go on, and a rollback stays possible.", reason)

    third.command(f"SYSTEM START FETCHES {Table.NEW}")
    third.command(f"SYSTEM SYNC REPLICA {Table.NEW}")
    old_writes.stop_old_writes(proven, replicated.warehouse(), NO_WAIT)
    assert replicated.switches()["writes"] == "new"


def test_an_audit_names_the_replica_that_lacks_what_it_compared(replicated: ReplicatedSystem, proven: Ledger) -> None:
    third = replicated.replicas[2]
    prove(replicated, proven)
    gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)
    look = Settings(in_flight_seconds=0, repair=False)

    def told() -> str:
        for batch in auditing.plan(proven, replicated.warehouse(), look, most_batches=1):
            for teams in auditing.groups(replicated.warehouse(), batch.team_ids):
                auditing.record(proven, auditing.audit(proven, replicated.warehouse(), teams, look))
        return auditing.judge(proven)[1]

    third.command(f"SYSTEM SYNC REPLICA {Table.NEW}")
    assert told().endswith("No id differs.")
    third.command(f"SYSTEM STOP FETCHES {Table.NEW}")
    insert_truth(replicated, BOB, 0, "new")
    insert_new(replicated, BOB, 0, "new")
    assert re.search("No id differs.\nreplica r3-01 of ClickHouse table person_distinct_id2 lacks 1 part", told())


@pytest.mark.slow
def test_preflight_waits_for_a_replica_that_lags_and_uses_up_no_try(
    replicated: ReplicatedSystem, airflow_metadata: None, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pdi2.edge.connections.PUT_OFF_SECONDS", 1)
    monkeypatch.setattr("pdi2.edge.retries.LONGEST_DELAY", timedelta(seconds=1))
    monkeypatch.setattr(pressure, "WAIT_IN_SLOT_SECONDS", 0)
    monkeypatch.setattr(ours, "SYNC_SECONDS", 1)
    first, second, _ = replicated.replicas
    first.command(f"SYSTEM STOP FETCHES {Table.OLD}")
    second.command(f"INSERT INTO {Table.OLD} (team_id, distinct_id) VALUES ({TEAM}, 'there')")

    def fetch_once_preflight_waits() -> None:
        until(lambda: "preflight waits: " in log.text)
        first.command(f"SYSTEM START FETCHES {Table.OLD}")

    thread = threading.Thread(target=fetch_once_preflight_waits, daemon=True)
    thread.start()
    run = replicated.run(dry_run=True)
    thread.join()
    assert run.state == "success"
    assert [task.try_number for task in run.get_task_instances() if task.task_id == "preflight"] == [1]
    assert "replica r1-01 of ClickHouse table person_distinct_id is" in log.text


@pytest.mark.slow
def test_keeper_that_fails_while_old_writes_end_uses_up_no_try(
    replicated: ReplicatedSystem, airflow_metadata: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdi2.edge.connections.PUT_OFF_SECONDS", 1)
    monkeypatch.setattr("pdi2.edge.retries.LONGEST_DELAY", timedelta(seconds=1))
    two_ids_each(replicated, TEAM)
    stop, failures = old_writes.stop_old_writes, [DatabaseError("Coordination error: Session expired", code=999)]

    def after_a_failure(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        stop(*arguments)

    monkeypatch.setattr(old_writes, "stop_old_writes", after_a_failure)
    run = replicated.run()
    assert run.state == "success"
    assert [task.try_number for task in run.get_task_instances() if task.task_id == "stop_old_writes"] == [1]
    assert not failures
    assert replicated.switches() == {"reads": "new", "writes": "new"}


def test_a_table_that_somebody_detaches_at_the_switch_lets_no_replica_pass(
    replicated: ReplicatedSystem, proven: Ledger
) -> None:
    """As SYSTEM RESTART REPLICA does for a moment: ClickHouse then shows neither the replica nor its parts."""
    prove(replicated, proven)
    replicated.replicas[2].command(f"SYSTEM STOP FETCHES {Table.NEW}")
    insert_new(replicated, ALICE, 0, "not fetched")
    detach = f"DETACH TABLE {Table.NEW}"

    between = Meanwhile(replicated, "parts_of_new", lambda: replicated.clickhouse.command(detach))
    with pytest.raises(WaitError, match="restarts or detaches"):
        replicas.wait_for_all(proven, between)
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        replicas.wait_for_all(proven, replicated.warehouse())
    replicated.clickhouse.command(f"ATTACH TABLE {Table.NEW}")
    assert proven.team(TEAM).status == "verified", "it is the same table"


def test_a_table_that_is_no_longer_replicated_is_verified_again(replicated: ReplicatedSystem, proven: Ledger) -> None:
    prove(replicated, proven)
    replicated.clickhouse.command(f"DETACH TABLE {Table.NEW}")
    replicated.clickhouse.command(f"ATTACH TABLE {Table.NEW} AS NOT REPLICATED")

    replicas.wait_for_all(proven, replicated.warehouse())

    assert proven.team(TEAM).status != "verified"


@pytest.mark.parametrize("engine", ["ReplacingMergeTree(version)", "at another path"])
def test_a_table_that_somebody_creates_anew_on_one_replica_stops_the_switch(
    replicated: ReplicatedSystem, proven: Ledger, engine: str
) -> None:
    prove(replicated, proven)
    second = replicated.replicas[1]
    [[definition]] = second.query(f"SHOW CREATE TABLE {Table.NEW}").result_rows
    second.command(f"DROP TABLE {Table.NEW} SYNC")
    path = re.escape("ReplicatedReplacingMergeTree('") + "([^']+)'"
    anew = r"ReplicatedReplacingMergeTree('\1/elsewhere'"
    if engine != "at another path":
        path, anew = r"ReplicatedReplacingMergeTree\([^)]*\)", engine
    second.command(re.sub(path, anew, definition))

    with pytest.raises(gate.GateError, match="(?s)since preflight.*The replicas of the two ClickHouse tables differ"):
        gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)
    assert replicated.switches()["reads"] == "old"


def test_each_wait_for_replicas_at_the_switch_has_patience_of_its_own(
    replicated: ReplicatedSystem, proven: Ledger
) -> None:
    third = replicated.replicas[2]
    ids = iter("abcdef")

    def lags(error: type[MigrationError] = WaitError) -> None:
        third.command(f"SYSTEM STOP FETCHES {Table.NEW}")
        insert_new(replicated, ALICE, 0, next(ids))
        with pytest.raises(error, match="r3-01"):
            wait()

    def an_hour_passes() -> None:
        replicated.postgres.execute(
            "UPDATE pdi2_migration.event "
            "SET detail = detail || jsonb_build_object('since', (detail ->> 'since')::float - 3600) "
            "WHERE detail ? 'since'"
        )

    def wait() -> None:
        replicas.wait_for_all(proven, replicated.warehouse())

    lags()
    third.command(f"SYSTEM START FETCHES {Table.NEW}")
    third.command(f"SYSTEM SYNC REPLICA {Table.NEW}")
    wait()
    an_hour_passes()
    lags()
    lags()
    an_hour_passes()
    lags(replicas.ReplicaError)
    lags()
    proven.record("paused")
    with pytest.raises(WaitError, match="paused"):
        gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)
    an_hour_passes()
    lags()


@pytest.mark.slow
def test_where_keeper_may_not_be_read_clickhouse_waits_for_the_replicas(
    replicated: ReplicatedSystem, proven: Ledger, followed_soon: Callable[[], None]
) -> None:
    forbidden = {
        "match": "system.zookeeper",
        "action": "error",
        "code": 497,
        "text": "Not enough privileges",
        "times": 99,
    }
    replicated.server.inject(forbidden)
    third = replicated.replicas[2]
    third.command(f"SYSTEM STOP FETCHES {Table.NEW}")
    prove(replicated, proven)

    with pytest.raises(WaitError, match="replica r2-01 or r3-01 of .* may lack some part"):
        gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)

    class Leaving(Warehouse):
        """The third replica goes away while ClickHouse waits for it."""

        def execute(self, name: str, *arguments: Any) -> Any:
            if name == "reach_every_replica":
                third.command(f"DETACH TABLE {Table.NEW}")
            return super().execute(name, *arguments)

    with pytest.raises(WaitError, match="replica r2-01 or r3-01 of .* may lack some part"):
        gate.switch_reads(proven, replicated.warehouse(kind=Leaving), NO_WAIT)
    barriers = "SELECT count() FROM system.mutations WHERE database = currentDatabase()"
    before = replicated.clickhouse.command(barriers)
    with pytest.raises(WaitError, match="replica r3-01 .* is away"):
        gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)
    assert replicated.clickhouse.command(barriers) == before, (
        "each of them would join the queue of a replica that is away"
    )
    third.command(f"SYSTEM START FETCHES {Table.NEW}")
    third.command(f"ATTACH TABLE {Table.NEW}")
    third.command(f"SYSTEM SYNC REPLICA {Table.NEW}")
    followed_soon()
    gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)
    assert [ids_on(client) for client in replicated.replicas] == [2, 2, 2]
    assert len(seen(replicated)) == 2, "the statement that waits takes nothing away"


@pytest.mark.slow
def test_tables_in_an_auxiliary_keeper_are_waited_for_too(
    replicated: ReplicatedSystem, proven: Ledger, followed_soon: Callable[[], None]
) -> None:
    """system.zookeeper shows the default Keeper, which knows nothing of them."""
    for client, name in zip(replicated.replicas, ("r1-01", "r2-01", "r3-01"), strict=True):
        for table in Table:
            client.command(f"DROP TABLE {table} SYNC")
        schema.create_clickhouse(client, keeper_path=f"aux:/{replicated.database}", replica=name)
    third = replicated.replicas[2]
    third.command(f"SYSTEM STOP FETCHES {Table.NEW}")
    insert_new(replicated, ALICE, 0)

    with pytest.raises(WaitError, match="replica r2-01 or r3-01 of .* may lack some part"):
        replicas.wait_for_all(proven, replicated.warehouse())
    third.command(f"SYSTEM START FETCHES {Table.NEW}")
    followed_soon()
    found = replicas.wait_for_all(proven, replicated.warehouse())
    assert [(one["name"], one["lacks"]) for one in found] == [("r1-01", 0), ("r2-01", 0), ("r3-01", 0)]
    assert [ids_on(client) for client in replicated.replicas] == [1, 1, 1]


def test_the_only_replica_waits_for_no_other(replicated: ReplicatedSystem, proven: Ledger) -> None:
    """The Helm chart installs a single replica (`replicasCount: 1`: charts-clickhouse, clickhouse_instance.yaml)."""
    for client in replicated.replicas[1:]:
        for table in Table:
            client.command(f"DROP TABLE {table} SYNC")
    insert_truth(replicated, BOB, 0, "only Postgres has it")
    prove(replicated, proven)
    gate.switch_reads(proven, replicated.warehouse(), NO_WAIT)
    assert seen(replicated) == {"early": ALICE, "late": ALICE, "only Postgres has it": BOB}


def test_a_replica_that_lags_is_waited_for_with_what_it_lacks(
    replicated: ReplicatedSystem, proven: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = replicated.replicas
    first.command(f"SYSTEM STOP FETCHES {Table.OLD}")
    second.command(f"INSERT INTO {Table.OLD} (team_id, distinct_id) VALUES ({TEAM}, 'there')")
    second.command(f"SYSTEM SYNC REPLICA {Table.OLD}")
    with pytest.raises(
        WaitError, match="replica r1-01 of ClickHouse table person_distinct_id is .* s behind, with 1 ent"
    ):
        ours.catch_up(replicated.warehouse())
    first.command(f"SYSTEM START FETCHES {Table.OLD}")
    monkeypatch.setattr(ours, "SYNC_SECONDS", 100)
    ours.catch_up(replicated.warehouse())
    assert len(rows_of(replicated, Table.OLD)) == 3


def test_what_a_replica_has_yet_to_fetch_is_no_difference(replicated: ReplicatedSystem, proven: Ledger) -> None:
    """The application writes at another replica, as behind a load balancer."""
    prove(replicated, proven)
    first, second, _ = replicated.replicas
    first.command(f"SYSTEM STOP FETCHES {Table.NEW}")
    insert_truth(replicated, BOB, 0, "new")
    second.command(
        f"INSERT INTO {Table.NEW} (team_id, distinct_id, person_id, version) VALUES ({TEAM}, 'new', '{BOB}', 0)"
    )
    with pytest.raises(WaitError, match="replica r1-01 of ClickHouse table person_distinct_id2 is .* s behind"):
        verify_team(proven, replicated.warehouse(), TEAM, NO_WAIT)
    first.command(f"SYSTEM START FETCHES {Table.NEW}")
    first.command(f"SYSTEM SYNC REPLICA {Table.NEW}")
    assert not verify_team(proven, replicated.warehouse(), TEAM, NO_WAIT)


def test_a_part_that_only_a_replica_has_that_is_away_is_waited_for_with_its_name(
    replicated: ReplicatedSystem, proven: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three are active, which suffices for inserts."""
    *others, third = replicated.replicas
    for client in others:
        client.command(f"SYSTEM STOP FETCHES {Table.OLD}")
    third.command(f"INSERT INTO {Table.OLD} (team_id, distinct_id) VALUES ({TEAM}, 'there')")
    third.command(f"DETACH TABLE {Table.OLD}")
    for client in others:
        client.command(f"SYSTEM START FETCHES {Table.OLD}")
    with pytest.raises(WaitError, match="r1-01 .* in its queue.* Away: r3-01. Start .*SYSTEM DROP REPLICA"):
        ours.catch_up(replicated.warehouse())
    replicated.clickhouse.command(f"SYSTEM DROP REPLICA 'r3-01' FROM TABLE {Table.OLD}")
    monkeypatch.setattr(ours, "SYNC_SECONDS", 100)
    ours.catch_up(replicated.warehouse())


def test_a_quorum_that_does_not_come_is_reported_with_the_replicas_that_lack_the_part(
    replicated: ReplicatedSystem, proven: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ClickHouse's error 319 names none of them."""
    monkeypatch.setitem(CONSISTENT, "insert_quorum_timeout", 1000)
    others = replicated.replicas[1:]
    for client in others:
        client.command(f"SYSTEM STOP FETCHES {Table.NEW}")
    told = "waits: ClickHouse error 319 .* replica r2-01 of .* lacks 1 part .* replica r3-01 of .* lacks 1 part"
    with pytest.raises(WaitError, match=f"The copy of the slice of team 7 .* {told}"):
        copy_team(proven, replicated.warehouse(), TEAM)
    for client in others:
        client.command(f"SYSTEM START FETCHES {Table.NEW}")
    copy_team(proven, replicated.warehouse(), TEAM)

    insert_truth(replicated, BOB, 0, "only Postgres has it")
    for client in others:
        client.command(f"SYSTEM SYNC REPLICA {Table.NEW}")
        client.command(f"SYSTEM STOP FETCHES {Table.NEW}")
    with pytest.raises(WaitError, match=f"The repair {told}"):
        verify_team(proven, replicated.warehouse(), TEAM, NO_WAIT)
    for client in others:
        client.command(f"SYSTEM START FETCHES {Table.NEW}")
    verify_team(proven, replicated.warehouse(), TEAM, NO_WAIT)
    assert proven.team(TEAM).status == "verified"


def test_a_fetch_that_fails_is_reported_with_its_error(replicated: ReplicatedSystem, proven: Ledger) -> None:
    replicated.server.exchange(refuse=True)
    try:
        replicated.replicas[1].command(f"INSERT INTO {Table.OLD} (team_id, distinct_id) VALUES ({TEAM}, 'there')")
        with pytest.raises(WaitError, match="replica r1-01 .* 1 entry in its queue. Its last failure: .*503"):
            ours.catch_up(replicated.warehouse())
        not_granted = {"match": "replication_queue", "action": "error", "code": 497, "text": "Not granted", "times": 9}
        replicated.server.inject(not_granted)
        with pytest.raises(WaitError, match="1 entry in its queue. What is finished"):
            ours.catch_up(replicated.warehouse())
    finally:
        replicated.server.exchange(refuse=False)
        replicated.server.inject()


@pytest.mark.parametrize(
    ("table", "on", "other", "told"),
    [
        (Table.NEW, (1,), "/elsewhere", "_id has r1-01, r2-01, r3-01 and person_distinct_id2 has r1-01, r3-01. On the"),
        (Table.NEW, (1,), "", "_id has r1-01, r2-01, r3-01 and person_distinct_id2 has r1-01, r3-01. On the"),
        (Table.NEW, (0, 1, 2), "", "_id has r1-01, r2-01, r3-01 and person_distinct_id2 has none. On the others, p"),
        (Table.OLD, (1, 2), "/elsewhere", "_id has r1-01 and person_distinct_id2 has r1-01, r2-01, r3-01. On the oth"),
    ],
)
def test_a_table_that_is_no_replica_of_its_namesakes_is_reported(
    replicated: ReplicatedSystem, table: Table, on: tuple[int, ...], other: str, told: str
) -> None:
    """It was created without ON CLUSTER where the path has {uuid}, with a typo, or as a plain table."""
    assert cluster_checks.problems(replicated.warehouse()) == []
    for number in on:
        client = replicated.replicas[number]
        [[definition]] = client.query(f"SHOW CREATE TABLE {table}").result_rows
        client.command(f"DROP TABLE {table} SYNC")
        another = definition.replace("'/clickhouse", f"'{other}/clickhouse")
        client.command(another if other else re.sub(r"Replicated(\w+)\('[^']*', '[^']*', ", r"\1(", definition))
    [problem] = cluster_checks.problems(replicated.warehouse())
    assert f"person_distinct{told}" in problem
    assert f"On the others, {table} is missing or a different table" in problem


def test_replicas_may_be_named_in_two_ways(replicated: ReplicatedSystem) -> None:
    """{replica} in one table, {replica}-{shard} in the other."""
    for client in replicated.replicas:
        [[definition]] = client.query(f"SHOW CREATE TABLE {Table.NEW}").result_rows
        client.command(f"DROP TABLE {Table.NEW} SYNC")
        elsewhere = definition.replace("/clickhouse", "/again/clickhouse")
        client.command(elsewhere.replace("'{replica}-{shard}'", "'{replica}'"))
    assert cluster_checks.problems(replicated.warehouse()) == []


def test_a_single_replica_may_stand_beside_a_plain_table(replicated: ReplicatedSystem) -> None:
    for client in replicated.replicas:
        client.command(f"DROP TABLE {Table.NEW} SYNC")
    for client in replicated.replicas[1:]:
        client.command(f"DROP TABLE {Table.OLD} SYNC")
    replicated.clickhouse.command(schema.sql(Table.NEW))
    assert cluster_checks.problems(replicated.warehouse()) == []


def test_the_copy_waits_where_too_few_replicas_are_active(replicated: ReplicatedSystem, proven: Ledger) -> None:
    for client in replicated.replicas[1:]:
        client.command(f"DETACH TABLE {Table.NEW}")
    with pytest.raises(WaitError, match=r"1 of 3 replicas of .* is active.*; away: r[23]-01, r[23]-01"):
        copy_team(proven, replicated.warehouse(), TEAM)
    [problem] = cluster_checks.problems(replicated.warehouse())
    assert "1 of 3 replicas are active" in problem
    for client in replicated.replicas[1:]:
        client.command(f"ATTACH TABLE {Table.NEW}")


def test_what_was_verified_on_another_replica_is_verified_again(replicated: ReplicatedSystem, proven: Ledger) -> None:
    prove(replicated, proven)
    ours.follow(proven, replicated.warehouse())
    assert proven.team(TEAM).status == "verified"

    there = partial(clickhouse_connect.get_client, **replicated.engine, database=replicated.replicas[1].database)
    with Warehouse(there, "elsewhere", Settings().max_memory_usage) as warehouse:
        ours.follow(proven, warehouse)
        assert proven.team(TEAM).status == "copied"
        with pytest.raises(gate.GateError):
            gate.switch_reads(proven, warehouse, NO_WAIT)
    connected = proven.latest("connected_to") or {}
    assert (connected["replica"], connected["before"]) == ("r2-01", "r1-01")


def test_a_failover_during_the_switch_has_the_teams_verified_again(
    replicated: ReplicatedSystem, proven: Ledger
) -> None:
    """A client replays a read on the replica that a load balancer leads to now, and nothing else shows it."""
    prove(replicated, proven)
    ours.follow(proven, replicated.warehouse())
    there = partial(clickhouse_connect.get_client, **replicated.engine, database=replicated.replicas[1].database)
    with Warehouse(there, "elsewhere", Settings().max_memory_usage) as warehouse, pytest.raises(gate.GateError):
        gate.switch_reads(proven, warehouse, NO_WAIT)
    assert proven.team(TEAM).status == "copied"
    assert replicated.status() != 2


@pytest.fixture
def front(replicated: ReplicatedSystem) -> Iterator[Client]:
    """A PostHog database with two Distributed tables, each in front of the only shard's table of the same name."""
    with clickhouse_connect.get_client(**replicated.engine) as client:
        client.command(f"CREATE DATABASE {replicated.database}_front")
        client.database = f"{replicated.database}_front"
        for table in Table:
            engine = f"Distributed('posthog', '{replicated.database}', '{table}', rand())"
            client.command(f"CREATE TABLE {table} AS {replicated.database}.{table} ENGINE = {engine}")
        yield client
        client.command(f"DROP DATABASE {client.database} SYNC")


@pytest.mark.slow
def test_replicas_behind_distributed_tables_are_migrated(
    replicated: ReplicatedSystem, front: Client, airflow_metadata: None
) -> None:
    """The application uses Distributed tables of the only shard. The migration is pointed at the tables behind them."""
    replicated.clickhouse = front
    connect = partial(clickhouse_connect.get_client, **replicated.engine, database=front.database)
    with Warehouse(connect, "in front", Settings().max_memory_usage) as warehouse:
        told = table_problems(warehouse)
    assert len(told) == 2
    for problem in told:
        assert f"Point posthog_clickhouse at the database {replicated.database} of a replica there." in problem
    add_teams(replicated, TEAM)
    writer = replicated.writer()
    for distinct_id in ("left alone", "moved", "lost on the way", "set back", "deleted", "deleted and back"):
        writer.create(TEAM, distinct_id)
    writer.identify(TEAM, "moved", writer.create(TEAM, "another"))
    writer.outbox = [message for message in writer.outbox if message.key != (TEAM, "lost on the way")]
    writer.delete(TEAM, "deleted")
    writer.flush()
    insert_new(replicated, BOB, 9, "set back")
    insert_new(replicated, BOB, 100, "deleted and back", is_deleted=True)

    assert replicated.run(stop_old_writes=False).state == "success"

    assert replicated.switches()["reads"] == "new"
    assert replicated.disagreements() == {}
    ledger = replicated.ledger()
    assert ledger.findings_by_kind() == {
        "ahead": {"repaired": 2, "remaining": 0},
        "missing": {"repaired": 1, "remaining": 0},
    }
    assert front.query(f"SELECT count() FROM {Table.NEW} WHERE version > 1").result_rows == [(0,)]
    writer.identify(TEAM, "left alone", writer.create(TEAM, "of today"))
    writer.delete(TEAM, "moved")
    writer.flush()
    for client in replicated.replicas:
        client.command(f"SYSTEM SYNC REPLICA {Table.NEW}")
    for client in [front, *replicated.replicas]:
        assert reader.team_in(client, Table.NEW, TEAM) == reader.truth_of(replicated.postgres, TEAM)
    facts, page = certificate.draw_up(ledger, ledger.latest("report") or {}).files.values()
    assert json.loads(facts)["replicas"]["compared_on"] == "r1-01"
    assert re.search("Replica r3-01</th><td[^>]*>has everything", page)
    run = watching.run(ledger.connection)
    shown = watching.status(ledger.connection, run, run, airflow={}, alive=False)["replicas"]["each"]
    assert [(one["name"], one["has"]) for one in shown] == [
        ("r1-01", "compared with Postgres"),
        ("r2-01", "has everything"),
        ("r3-01", "has everything"),
    ]


def test_a_statement_that_the_client_has_given_up_is_killed(
    replicated: ReplicatedSystem, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("pdi2.core.engines.clickhouse.TELL_EVERY_SECONDS", 0.2)
    connect = partial(clickhouse_connect.get_client, **replicated.engine, send_receive_timeout=1)
    with Warehouse(connect, "impatient", Settings().max_memory_usage) as warehouse:
        with pytest.raises(OperationalError):
            warehouse.command("SELECT sum(sleepEachRow(0.1)) FROM numbers(2000) SETTINGS max_block_size = 1")
        assert re.search(r"ClickHouse has not answered for \d+ s: SELECT sum\(sleepEachRow", caplog.text)
        left = "SELECT count() FROM system.processes WHERE Settings['log_comment'] LIKE 'pdi2 impatient%'"
        deadline = time.monotonic() + 100
        while replicated.clickhouse.query(left).result_rows[0][0]:
            assert time.monotonic() < deadline, "200 seconds are what it would take by itself"
        assert warehouse.rows("host"), "in a session that is free"


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda warehouse: warehouse._open(), "a new connection"),
        (lambda warehouse: warehouse.servers(), "SELECT concat(hostName()"),
        (lambda warehouse: warehouse.known, "SELECT name, value"),
        (lambda warehouse: warehouse.kill(), "the end of a statement"),
    ],
    ids=["opens", "looks for a balancer", "reads the settings", "kills"],
)
def test_a_frozen_server_is_reported_whatever_it_is_asked(
    replicated: ReplicatedSystem,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ask: Callable[[Warehouse], Any],
    told: str,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("pdi2.core.engines.clickhouse.TELL_EVERY_SECONDS", 0.2)
    connect = partial(clickhouse_connect.get_client, **replicated.engine, send_receive_timeout=1)
    with Warehouse(connect, "impatient", Settings().max_memory_usage) as warehouse:
        replicated.server.freeze()
        try:
            with pytest.raises(OperationalError):
                ask(warehouse)
        finally:
            replicated.server.thaw()
    assert re.search(rf"ClickHouse has not answered for \d+ s: {re.escape(told)}", caplog.text)
