"""No user's profile can silently truncate an answer. A profile that makes that impossible is reported by preflight.

Most profiles are given as the settings of a connection, which act on a statement like those of its user's profile.
If constraints, quotas or several disks matter, an engine of its own reads them from a real users.xml and config.xml.
"""

import gc
import json
import multiprocessing
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from urllib.request import Request, urlopen

import clickhouse_connect
import psycopg
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, Error
from conftest import ENGINE, FILL, ROOT, System
from pdi2.core.cluster import pressure
from pdi2.core.copy.copying import copy_team
from pdi2.core.copy.staging import forget_all
from pdi2.core.engines import measuring
from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.engines.exactness import Setting, suffices
from pdi2.core.engines.failures import BusyError, Reaction, WaitError, naming_failures, reaction, uncut, waits
from pdi2.core.plan import clickhouse_checks
from pdi2.core.plan.preflight import Verdict, check
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.state.slices import Teams
from pdi2.core.switch import gate, payoff
from pdi2.core.verify.digesting import old_differs
from quick import SETTINGS_FOUND
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
    migrate,
    stop_merges,
    stop_old_writes,
)

from demo import clickhouse_server, schema

MEMORY = Settings().max_memory_usage
IDS = "SELECT distinct_id FROM person_distinct_id"
READ = "SELECT sum(_offset) FROM person_distinct_id"
DISTINCT = "SELECT DISTINCT distinct_id FROM person_distinct_id"
GROUPS = "SELECT count() FROM (SELECT distinct_id FROM person_distinct_id GROUP BY distinct_id)"
COLUMNS = "SELECT " + ", ".join(f"_offset + {number}" for number in range(20)) + " FROM person_distinct_id"
DOUBLED = "_offset AS a0, " + ", ".join(f"a{number} + a{number} AS a{number + 1}" for number in range(8))
DESCRIBE = "DESCRIBE TABLE person_distinct_id2"
MANY = 20_000
"""More than ten thousand, so the team waits in a staging table."""
FIRST = {"max_block_size": 100, "max_threads": 1}
"""Makes blocks small, because limits are checked from block to block."""
PROFILES: dict[str, tuple[dict[str, Any], str]] = {
    "limit": ({"limit": 1}, IDS),
    "offset": ({"offset": 1}, IDS),
    "read": ({"max_rows_to_read": 300, "read_overflow_mode": "break"} | FIRST, READ),
    "read bytes": ({"max_bytes_to_read": 5000, "read_overflow_mode": "break"} | FIRST, READ),
    "group_by any": ({"max_rows_to_group_by": 1, "group_by_overflow_mode": "any"} | FIRST, GROUPS),
    "group_by break": ({"max_rows_to_group_by": 1, "group_by_overflow_mode": "break"} | FIRST, GROUPS),
    "result": ({"max_result_rows": 1, "result_overflow_mode": "break"} | FIRST, IDS),
    "sort": ({"max_rows_to_sort": 1, "sort_overflow_mode": "break"} | FIRST, f"{IDS} ORDER BY cityHash64(distinct_id)"),
    "distinct": ({"max_rows_in_distinct": 1, "distinct_overflow_mode": "break"} | FIRST, DISTINCT),
    "set": ({"max_rows_in_set": 1, "set_overflow_mode": "break"} | FIRST, f"{IDS} WHERE distinct_id IN ({IDS})"),
    "filter": ({"additional_table_filters": {"person_distinct_id": "distinct_id <> 'id1'"}}, IDS),
    "filter of the new table": (
        {"additional_table_filters": {"person_distinct_id2": "version = 77"}},
        "SELECT count() FROM person_distinct_id2",
    ),
    "result filter": ({"additional_result_filter": "rand() % 2"}, "SELECT distinct_id, count() FROM person_distinct_id "
                      "GROUP BY distinct_id"),
    "final": ({"final": 1}, IDS),
    "no deleted mask": ({"apply_deleted_mask": 0}, "SELECT max(version) FROM person_distinct_id2"),
    "no usual meaning": (
        {
            "join_use_nulls": 1,
            "join_default_strictness": "ANY",
            "aggregate_functions_null_for_empty": 1,
            "empty_result_for_aggregation_by_empty_set": 1,
            "group_by_use_nulls": 1,
            "transform_null_in": 1,
            "prefer_column_name_to_alias": 1,
            "extremes": 1,
            "data_type_default_nullable": 1,
            "input_format_tsv_enum_as_number": 1,
        },
        "SELECT count() FROM person_distinct_id WHERE team_id = 99",
    ),
    "no statement without an index": (
        {"force_primary_key": 1, "force_index_by_date": 1},
        "SELECT count(), min(_offset) FROM person_distinct_id",
    ),
    "columns": ({"max_columns_to_read": 4}, "SELECT * FROM person_distinct_id"),
    "temporary columns": ({"max_temporary_columns": 20}, COLUMNS),
    "temporary columns, not constant": ({"max_temporary_non_const_columns": 16}, COLUMNS),
    "subqueries": ({"max_subquery_depth": 2}, f"SELECT * FROM (SELECT * FROM (SELECT * FROM ({GROUPS})))"),
    "elements": ({"max_ast_elements": 30}, COLUMNS),
    "depth": ({"max_ast_depth": 12}, f"SELECT {'abs(' * 9}_offset{')' * 9} FROM person_distinct_id"),
    "expanded elements": ({"max_expanded_ast_elements": 200}, f"WITH {DOUBLED} SELECT a8 FROM person_distinct_id"),
    "subcolumns in DESCRIBE": ({"describe_include_subcolumns": 1}, DESCRIBE),
    "short DESCRIBE": ({"describe_compact_output": 1}, DESCRIBE),
    "virtual columns in DESCRIBE": ({"describe_include_virtual_columns": 1}, DESCRIBE),
    "WITH in no subquery": (
        {"enable_global_with_statement": 0},
        f"WITH ids AS ({IDS}) SELECT count() FROM ({IDS} WHERE distinct_id IN (SELECT distinct_id FROM ids))",
    ),
    "tables not dropped": ({"max_table_size_to_drop": 1}, "DROP TABLE person_distinct_id SYNC"),
    "joins": ({"join_algorithm": "direct"}, f"SELECT count() FROM ({IDS}) AS a JOIN ({IDS}) AS b USING distinct_id"),
    "named tuples": (
        {"enable_named_columns_in_function_tuple": 1},
        "SELECT toTypeName((team_id, distinct_id)) FROM person_distinct_id",
    ),
    "types in another format": (
        {
            "output_format_native_encode_types_in_binary_format": 1,
            "input_format_native_decode_types_in_binary_format": 1,
        },
        IDS,
    ),
}  # fmt: skip


PROFILES_AT_ONCE = 7


def grouped() -> list[list[str]]:
    """The profiles' names, in groups whose settings do not contradict each other: a migration takes seconds."""
    groups: list[list[str]] = []
    for name, (profile, _) in PROFILES.items():
        for group in groups:
            others = {setting: value for other in group for setting, value in PROFILES[other][0].items()}
            if len(group) < PROFILES_AT_ONCE and others | profile == profile | others:
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


@pytest.fixture
def story(system: System) -> System:
    """Rows that give every statement of the migration something to do."""
    stop_merges(system)
    insert_old(system, [event(f"+{'ABC'[number % 3]}1", f"id{number}") for number in range(12)])
    for one in ("+A2", "-A3", "+B3"):
        insert_old(system, [event(one, "moved")])
    for one in ("+A4", "-A5", "+A6", "-A7"):
        insert_old(system, [event(one, "thrice")])
    insert_old(system, [event("+C1", "other", 8), event("+C1", "id1", 8), event("+A1", "last", 9)])
    for number in range(12):
        insert_truth(system, (ALICE, BOB, CAROL)[number % 3], 0, f"id{number}")
    insert_truth(system, BOB, 1, "moved")
    insert_truth(system, CAROL, 0, "other", 8)
    insert_truth(system, CAROL, 0, "id1", 8)
    insert_truth(system, ALICE, 0, "last", 9)
    insert_truth(system, ALICE, 3, "missing")
    insert_truth(system, ALICE, 2, "tied")
    many_ids(system, MANY, 10, person=f"toUUID('{ALICE}')")
    insert_truth(system, ALICE, 0, "0", 10)
    system.postgres.execute(
        "INSERT INTO posthog_persondistinctid (team_id, distinct_id, person_id, version) "
        "SELECT team_id, n::text, id, 0 FROM posthog_person, generate_series(1, %s) AS n WHERE team_id = 10",
        [MANY - 1],
    )
    for person in (BOB, CAROL):
        insert_new(system, person, 2, "tied")
    insert_new(system, CAROL, 99, "id0")
    system.clickhouse.command("DELETE FROM person_distinct_id2 WHERE version = 99")
    return system


def with_profile(system: System, profile: dict[str, Any]) -> dict[str, Any]:
    """Gives the profile to every later connection of the system. Returns those settings that the server knows."""
    names = {row[0] for row in system.clickhouse.query("SELECT name FROM system.settings").result_rows}
    known = {name: value for name, value in profile.items() if name in names}
    system.engine = {**system.engine, "settings": known}
    return known


def outcome(system: System) -> dict[str, Any]:
    rows = "SELECT team_id, distinct_id, kind, repaired FROM pdi2_migration.finding ORDER BY 1, 2, 3"
    team = "SELECT team_id, status, rows_source, rows_copied, old_differs, digest FROM pdi2_migration.team ORDER BY 1"
    return {"findings": system.postgres.execute(rows).fetchall(), "teams": system.postgres.execute(team).fetchall()}


EXPECTED_TEAMS = [(7, "verified", 19, 13), (8, "verified", 2, 2), (9, "verified", 1, 1), (10, "verified", MANY, MANY)]


@pytest.mark.parametrize("names", grouped(), ids=", ".join)
def test_no_profile_cuts_an_answer_short(story: System, names: list[str]) -> None:
    server = story.engine
    profiles: dict[str, Any] = {}
    for name in names:
        profile, control = PROFILES[name]
        whole = [] if control.startswith("DROP") else sorted(story.clickhouse.query(control).result_rows)
        story.engine = server
        if known := with_profile(story, profile):
            with story.client() as client, suppress(Error):
                assert sorted(client.query(control).result_rows) != whole, f"{name} cuts answers short, or is an error"
        profiles |= known
    if not profiles:
        pytest.skip("this ClickHouse has none of these settings")
    story.engine = server
    with_profile(story, profiles)

    assert check(story.ledger(), story.warehouse(), NO_WAIT, []).verdict is Verdict.MIGRATE
    migrate(story, story.ledger())

    assert story.disagreements() == {}
    found = outcome(story)
    assert [team[:4] for team in found["teams"]] == EXPECTED_TEAMS
    assert found["findings"] == [
        (TEAM, "missing", "missing", True),
        (TEAM, "tied", "wrong_person", True),
    ]


def test_the_query_cache_answers_nothing(story: System) -> None:
    """A second look would be answered with what the first saw. (The embedded engine has the setting, but no cache.)"""
    cache = {
        "use_query_cache": 1,
        "query_cache_nondeterministic_function_handling": "ignore",
        "query_cache_system_table_handling": "ignore",
    }
    if "use_query_cache" not in with_profile(story, cache):
        pytest.skip("this ClickHouse has no query cache")
    warehouse = story.warehouse()
    warehouse.command(
        "INSERT INTO person_distinct_id2 (team_id, distinct_id) SELECT getSetting('use_query_cache'), 'cached'"
    )
    assert story.clickhouse.query(
        "SELECT team_id FROM person_distinct_id2 WHERE distinct_id = 'cached'"
    ).result_rows == [(0,)]
    counted = dict(warehouse.rows("teams"))
    insert_old(story, [event("+A9", "later")])

    assert dict(warehouse.rows("teams")) == counted | {TEAM: counted[TEAM] + 1}


def test_a_connection_with_limits_does_not_cut_answers_short(story: System) -> None:
    """clickhouse-connect adds its own LIMIT if its connection says `query_limit`."""
    story.engine = {**story.engine, "query_limit": 1}
    with story.client() as client:
        assert len(client.query(IDS).result_rows) == 1

    assert dict(story.warehouse().rows("teams"))[10] == MANY


def test_a_time_limit_is_an_error_and_no_short_answer(story: System) -> None:
    """The engine looks at the clock now and then, so a late answer may be no error, but then it is whole."""
    many_ids(story, 2_000_000, 11)
    ids = "simple_ids_seen", Teams((11,), 0).parameters
    [[whole]] = story.warehouse().rows(*ids)
    assert whole > 1_900_000, "nearly every id has a hash of its own"
    with_profile(story, {"max_execution_time": 0.01, "timeout_overflow_mode": "break"})

    def ask_again() -> None:
        while True:
            assert story.warehouse().rows(*ids) == [(whole,)]

    with pytest.raises(DatabaseError) as late:
        ask_again()
    assert reaction(late.value) is Reaction.SPLIT
    assert uncut(late.value) is Reaction.RETRY


@pytest.mark.slow
def test_a_time_limit_is_met_with_smaller_slices(system: System) -> None:
    """A range that fits in memory takes a statement longer than it may, and a part of that range does not.

    The speed is limited too, so that a fast machine takes as long as a busy one.
    """
    count = 1_000_000
    many_ids(system, count)
    ledger = system.ledger()
    ledger.create()
    ledger.plan({TEAM: count})
    with_profile(
        system,
        {"max_execution_time": 0.25, "max_execution_speed": 4_000_000, "timeout_before_checking_execution_speed": 0.01},
    )
    warehouse = system.warehouse(max_memory_usage=2_000_000_000)

    tried_again(lambda: copy_team(ledger, warehouse, TEAM))
    assert system.clickhouse.query("SELECT uniqExact(distinct_id) FROM person_distinct_id2").result_rows == [(count,)]
    [[learned]] = system.postgres.execute("SELECT slice_rows FROM pdi2_migration.team").fetchall()
    assert learned < count

    assert tried_again(lambda: old_differs(warehouse, Teams((TEAM,), count))).total() == 0


def tried_again(work: Callable[[], Any]) -> Any:
    """As Airflow tries again: the machine may be so busy that not even the smallest statement is done in time."""
    while True:
        try:
            return work()
        except (BusyError, DatabaseError) as error:
            if uncut(error) is not Reaction.RETRY:
                raise


@pytest.mark.parametrize(
    ("name", "value", "wanted", "does"),
    [
        ("max_ast_elements", "1000000", 50_000, True),
        ("max_ast_elements", "50000", 50_000, True),
        ("max_ast_elements", "100", 50_000, False),
        ("max_expanded_ast_elements", "0", 500_000, False),
        ("max_table_size_to_drop", "0", 50_000_000_000, True),
        ("join_algorithm", "direct,parallel_hash,hash", "default", True),
        ("join_algorithm", "direct", "default", False),
        ("join_use_nulls", "1", 0, False),
    ],
)
def test_a_profiles_value_that_suffices_is_kept(name: str, value: str, wanted: Any, does: bool) -> None:
    """So no constraint on a harmless value is refused. With 0 expanded elements every statement fails (26.9)."""
    assert suffices(name, Setting(value, None, None, fixed=True), wanted) is does


@pytest.mark.parametrize("code", [159, 160])
def test_what_is_too_slow_and_cannot_be_cut_is_tried_again(system: System, code: int) -> None:
    from airflow.sdk.definitions.retry_policy import RetryAction
    from pdi2.edge.retries import RetryWhatHelps

    limits = {
        159: {"max_execution_time": 0.1},
        160: {"min_execution_speed": 10**15, "timeout_before_checking_execution_speed": 0.01},
    }
    with pytest.raises(BusyError, match="max_execution_time") as told, naming_failures("certify"):
        system.clickhouse.query("SELECT sum(cityHash64(number)) FROM numbers(100000000000)", settings=limits[code])

    assert getattr(told.value.__cause__, "code", None) == code
    assert RetryWhatHelps().evaluate(told.value, 1, 6).action is RetryAction.RETRY


def test_a_wait_for_a_replica_is_no_time_limit() -> None:
    """What SYSTEM SYNC REPLICA says in ClickHouse's source (InterpreterSystemQuery), with the same code."""
    error = DatabaseError("SYNC REPLICA posthog.person_distinct_id2: command timed out", code=159)
    assert reaction(error) is Reaction.RETRY


@pytest.mark.parametrize("name", ["max_concurrent_queries_for_user", "max_concurrent_queries_for_all_users"])
def test_a_user_who_may_run_one_statement_at_a_time_is_not_in_its_own_way(
    story: System, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A look at a statement's memory is a statement too."""
    monkeypatch.setattr(measuring, "POLL_SECONDS", 0)
    if not with_profile(story, {name: 1}):
        pytest.skip("this ClickHouse has no such limit")

    migrate(story, story.ledger())

    assert story.disagreements() == {}


@pytest.mark.parametrize("code", [202, 700])
def test_a_place_among_the_statements_that_run_is_waited_for(code: int) -> None:
    """As long as other copies of this user have it, which may be hours."""
    error = DatabaseError("too many", code=code)
    assert (reaction(error), waits(error)) == (Reaction.RETRY, True)


# The tests below need an engine with its own users.xml or config.xml, and therefore another process than this one's.

USERS = """<clickhouse><profiles><default>{profile}</default></profiles>
<users><default><password/><profile>default</profile><quota>default</quota><networks><ip>::/0</ip></networks>
{user}</default></users><quotas><default>{quota}</default></quotas></clickhouse>"""


def write_config(path: Path, *, profile: str = "", quota: str = "", user: str = "", config: str = "") -> None:
    (path / "users.xml").write_text(USERS.format(profile=profile, quota=quota, user=user))
    config = f"<clickhouse><users_config>{path}/users.xml</users_config>{config}</clickhouse>"
    (path / "config.xml").write_text(config)


def configured(path: Path, work: Callable[..., Any], **pieces: str) -> Any:
    """The result of `work`, which gets the directory of an engine with these XML pieces in its files."""
    write_config(path, **pieces)
    return another_process().submit(with_another_engine, work, path).result()


@cache
def another_process() -> ProcessPoolExecutor:
    """One for all engines, one after the other, because to begin takes 2 s."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def with_another_engine(work: Callable[[Path], Any], path: Path) -> Any:
    gc.collect()  # what a failed attempt to connect has left would keep the last engine
    SETTINGS_FOUND.clear()
    return work(path)


def address(path: Path) -> dict[str, Any]:
    return {"path": str(path / "data"), "chdb_options": {"config-file": str(path / "config.xml")}}


def connect(path: Path) -> Client:
    return clickhouse_connect.get_client(interface="chdb", **address(path))


def profile_problems(path: Path) -> list[str]:
    with Warehouse(lambda: connect(path), "preflight", MEMORY) as warehouse:
        return clickhouse_checks.profile_problems(warehouse, MEMORY)


real_engine = pytest.mark.skipif(bool(ENGINE), reason="an engine of this process's kind")
CONSTRAINTS = {
    "nothing": ("", []),
    "const as needed": ("<limit>0</limit><constraints><limit><const/></limit></constraints>", []),
    "const": (
        "<limit>5000</limit><constraints><limit><const/></limit></constraints>",
        ["forbids what the statements must set: .*452.*Setting limit should not be changed.*Remove these constraints"],
    ),
    "several": (
        "<max_threads>8</max_threads><constraints><max_threads><min>4</min></max_threads>"
        "<min_insert_block_size_bytes><min>1000000000</min></min_insert_block_size_bytes>"
        "<join_use_nulls><const/></join_use_nulls></constraints>",
        [r"max_threads is at least 4 and has to be 2.*; min_insert_block_size_bytes is at least 1000000000"],
    ),
    "memory": (
        "<constraints><max_memory_usage><max>100000000</max></max_memory_usage></constraints>",
        ["run's max_memory_usage: max_memory_usage is at most 100000000 and has to be 200000000. Trigger the run"],
    ),
    "less memory": (
        "<constraints><max_memory_usage><min>200000000</min></max_memory_usage></constraints>",
        ["forbids what the statements must set: max_memory_usage is at least 200000000 and has to be 16000000"],
    ),
    "small blocks": (
        "<constraints><max_block_size><min>100000</min></max_block_size>"
        "<receive_timeout><min>60</min></receive_timeout></constraints>",
        ["receive_timeout is at least 60 and has to be 10; max_block_size is at least 100000 and has to be 65536"],
    ),
    "comment": (
        "<constraints><log_comment><const/></log_comment></constraints>",
        ["forbids what the statements must set: log_comment is fixed at nothing and has to be pdi2"],
    ),
    "readonly": ("<readonly>1</readonly>", [r"readonly = 1\)\. Give the user of posthog_clickhouse"]),
    "readonly but for settings": ("<readonly>2</readonly>", [r"readonly = 2\)\. Give"]),
    "no tables": ("<allow_ddl>0</allow_ddl>", ["allow_ddl = 0.*Give the user"]),
}


@real_engine
@pytest.mark.parametrize(("profile", "told"), CONSTRAINTS.values(), ids=CONSTRAINTS.keys())
def test_what_a_profile_forbids_is_reported(tmp_path: Path, profile: str, told: list[str]) -> None:
    found = configured(tmp_path, profile_problems, profile=profile)

    assert len(found) == len(told)
    for problem, pattern in zip(found, told, strict=True):
        assert re.search(pattern, problem), problem


def policy_problems(path: Path) -> list[str]:
    with connect(path) as client, Warehouse(lambda: connect(path), "preflight", MEMORY) as warehouse:
        schema.create_clickhouse(client)
        client.command("INSERT INTO person_distinct_id (team_id, distinct_id) SELECT number, 'id' FROM numbers(10)")
        assert client.query("SELECT team_id FROM person_distinct_id").result_rows == [(7,)]
        return clickhouse_checks.table_problems(warehouse)


@real_engine
def test_a_row_policy_that_hides_rows_is_reported(tmp_path: Path) -> None:
    """The policy is in users.xml. CREATE ROW POLICY has the same effect on a statement (ClickHouse's documentation)."""
    policy = "<person_distinct_id><filter>team_id = 7</filter></person_distinct_id>"

    [problem] = configured(tmp_path, policy_problems, user=f"<databases><default>{policy}</default></databases>")

    assert "hides rows of person_distinct_id from the ClickHouse user: it sees only those where team_id = 7" in problem


def create_fresh(path: Path) -> None:
    with connect(path) as client:
        schema.create_clickhouse(client)
        client.command("CREATE TABLE person_distinct_id_backup AS person_distinct_id")
        client.command(f"ALTER TABLE person_distinct_id_backup COMMENT COLUMN distinct_id 'skip_0003_{FILL}'")


def what_preflight_finds(uri: str, path: Path) -> tuple[Verdict, str]:
    with (
        psycopg.connect(uri, autocommit=True) as connection,
        Warehouse(lambda: connect(path), "preflight", MEMORY) as warehouse,
    ):
        found = check(Ledger(connection, "a dry run", "ann"), warehouse, Settings(dry_run=True), [])
        return found.verdict, found.message


@real_engine
def test_a_fresh_installation_is_seen_with_the_grants_of_the_runbook(system: System, tmp_path: Path) -> None:
    """The skip comment is on a table of which the user may read nothing."""
    configured(tmp_path, create_fresh)
    look = partial(what_preflight_finds, system.uri)

    verdict, message = configured(tmp_path, look, user=granting(of_the_runbook()))

    assert verdict is Verdict.NOTHING
    assert "person_distinct_id_backup.distinct_id carries the skip comment" in message
    assert system.value("SELECT to_regnamespace('pdi2_migration')") is None


def what_a_reader_is_told(path: Path) -> list[str]:
    with Warehouse(lambda: connect(path), "preflight", MEMORY) as warehouse:
        return clickhouse_checks.table_problems(warehouse)


@real_engine
@pytest.mark.parametrize("read", [["person_distinct_id", "person_distinct_id2"], []], ids=["both", "none"])
def test_a_user_who_may_only_read_can_look_at_the_tables(tmp_path: Path, read: list[str]) -> None:
    """As in a dry run. Whoever may not even read them is told so by a later check, with the grants that are missing."""
    configured(tmp_path, create_fresh)
    grants = ["SHOW COLUMNS ON default.*", *(f"SELECT ON default.{table}" for table in read)]

    assert configured(tmp_path, what_a_reader_is_told, user=granting([f"GRANT {grant}" for grant in grants])) == []


def of_the_runbook() -> list[str]:
    runbook = (ROOT / "docs" / "runbook.md").read_text().replace("posthog.", "default.")
    return re.findall(r"GRANT [^;]+ ON (?:default|system)\.[^;]+(?= TO migration;)", runbook)


def granting(grants: list[str]) -> str:
    return f"<grants>{''.join(f'<query>{grant}</query>' for grant in grants)}</grants>"


def ungranted(path: Path) -> list[str]:
    with Warehouse(lambda: connect(path), "preflight", MEMORY) as warehouse:
        return clickhouse_checks.grant_problems(warehouse)


def seeded(uri: str, path: Path) -> None:
    """A team that waits in a staging table, and a small one. In each, an id that Postgres does not have is live in the
    new table, so that a DELETE is needed."""
    with connect(path) as client, psycopg.connect(uri, autocommit=True) as connection:
        client.command("CREATE DATABASE posthog")  # the database default of clickhouse-local shows files as tables
        client.command("USE posthog")
        schema.create_clickhouse(client)
        system = System(connection, client, {}, "posthog", uri)
        for team_id, ids in ((TEAM, MANY), (TEAM + 1, 10)):
            many_ids(system, ids, team_id, person=f"toUUID('{ALICE}')")
            insert_truth(system, ALICE, 0, "0", team_id)
            client.command(
                "INSERT INTO person_distinct_id2 (team_id, distinct_id, person_id, is_deleted, version) "
                f"SELECT {team_id}, 'nobody', toUUID('{BOB}'), 0, 5"
            )


def migrated(uri: str, path: Path) -> dict[int, set[str]]:
    engine = {"interface": "chdb"} | address(path)
    with (
        clickhouse_connect.get_client(**engine, database="posthog") as client,
        psycopg.connect(uri, autocommit=True) as connection,
    ):
        system = System(connection, client, engine, "posthog", uri)
        ledger, warehouse = system.ledger(), system.warehouse()
        assert check(ledger, warehouse, NO_WAIT, []).verdict is Verdict.MIGRATE
        migrate(system, ledger)
        forget_all(warehouse)
        gate.certify(ledger, warehouse, NO_WAIT)
        payoff.measure(ledger, warehouse)
        gate.switch_reads(ledger, warehouse, NO_WAIT)
        stop_old_writes(system, ledger)
        warehouse.kill()
        found = system.disagreements()
        for opened in system.opened:
            opened.close()
        return found


@pytest.mark.slow
@real_engine
def test_a_migration_runs_with_the_grants_of_the_runbook(system: System, tmp_path: Path) -> None:
    """The engine itself refuses what was not granted, except system tables, which clickhouse-local shows everybody."""
    configured(tmp_path, partial(seeded, system.uri))
    grants = [grant.replace("default.", "posthog.") for grant in of_the_runbook()]

    assert configured(tmp_path, partial(migrated, system.uri), user=granting(grants)) == {}


@real_engine
def test_what_the_user_was_not_granted_is_reported(tmp_path: Path) -> None:
    assert configured(tmp_path, ungranted, user=granting(of_the_runbook())) == []
    few = ["SELECT ON default.*", "INSERT ON default.person_distinct_id2", "CREATE TABLE, DROP TABLE ON default.*"]
    told = configured(tmp_path, ungranted, user=granting([f"GRANT {grant}" for grant in few]))
    assert [" ".join(line.partition(".")[0].split()[5:]) for line in told] == [
        "ALTER DELETE on person_distinct_id2",
        "INSERT on person_distinct_id2_staging_0",
        "ALTER SETTINGS on person_distinct_id2_staging_0",
    ]


class Dropping(BaseHTTPRequestHandler):
    """A proxy before ClickHouse that drops settings, as chproxy does with what its `allowedParams` lacks (scope.go)."""

    allowed = ("query", "database", "session_id", "default_format", "compress", "enable_http_compression")
    clickhouse: clickhouse_server.Server

    def do_POST(self) -> None:
        address = urlsplit(self.path)
        kept = urlencode([(name, value) for name, value in parse_qsl(address.query) if name in self.allowed])
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = Request(f"http://127.0.0.1:{self.clickhouse.port}/?{kept}", body, dict(self.headers))
        with urlopen(asked) as answer:
            found = answer.read()
            self.send_response(200)
            for name, value in answer.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding"):
                    self.send_header(name, value)
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)


@real_engine
def test_a_proxy_that_drops_settings_is_reported(tmp_path: Path) -> None:
    with clickhouse_server.running(tmp_path) as server, ThreadingHTTPServer(("127.0.0.1", 0), Dropping) as proxy:
        Dropping.clickhouse = server
        Thread(target=proxy.serve_forever, daemon=True).start()
        through = replace(server, port=proxy.server_port)
        for address, problems in ((server, 0), (through, 1)):
            with Warehouse(address.connect, "preflight", MEMORY) as warehouse:
                told = clickhouse_checks.profile_problems(warehouse, MEMORY)
            assert len(told) == problems
        assert "do not reach ClickHouse" in told[0]
        proxy.shutdown()


CLOSED = {
    "cache, and it may not be changed": (
        "<use_query_cache>1</use_query_cache><constraints><use_query_cache><const/></use_query_cache></constraints>",
        "use_query_cache = 1",
    ),
    "cache, and readonly": ("<use_query_cache>1</use_query_cache><readonly>1</readonly>", "use_query_cache = 1"),
    "result": ("<max_result_rows>10</max_result_rows>", "max_result_rows or max_result_bytes below 10,000 rows"),
    "columns": ("<max_columns_to_read>2</max_columns_to_read>", "max_columns_to_read below 3"),
    "temporary columns": ("<max_temporary_columns>2</max_temporary_columns>", "max_temporary_columns below 20"),
    "offset": ("<offset>1</offset>", "offset or additional_result_filter"),
    "result filter": ("<additional_result_filter>0</additional_result_filter>", "offset or additional_result_filter"),
    "types": (
        "<output_format_native_encode_types_in_binary_format>1</output_format_native_encode_types_in_binary_format>",
        "output_format_native_encode_types_in_binary_format = 1",
    ),
}


def told_of_a_closed_server(path: Path) -> str:
    from pdi2.edge import connections

    os.environ |= connected_to(path)
    with pytest.raises(Error) as closed:
        connections.open_warehouse("preflight", MEMORY)
    assert closed.value.code is None or uncut(closed.value) is not Reaction.RETRY
    return connections._closed(closed.value) or ""


def connected_to(path: Path) -> dict[str, str]:
    extra = {"client_kwargs": {"interface": "chdb"} | address(path)}
    return {"AIRFLOW_CONN_POSTHOG_CLICKHOUSE": json.dumps({"conn_type": "clickhouse", "extra": extra})}


@pytest.mark.slow
@real_engine
@pytest.mark.parametrize(("profile", "told"), CLOSED.values(), ids=CLOSED.keys())
def test_a_profile_with_which_nobody_can_connect_is_reported(tmp_path: Path, profile: str, told: str) -> None:
    """The client library asks for the server's settings as it connects, and the profile forbids that."""
    problem = configured(tmp_path, told_of_a_closed_server, profile=profile)

    assert problem.startswith(f"With {told}")
    assert "does not answer" not in problem
    assert "in its profile, the ClickHouse user cannot even read the server's settings" in problem
    assert "Give the user of posthog_clickhouse a profile without it." in problem


@pytest.mark.slow
@real_engine
@pytest.mark.usefixtures("airflow_metadata")
def test_a_profile_with_which_nobody_can_connect_is_one_line_of_preflight(system: System, tmp_path: Path) -> None:
    profile, told = CLOSED["result"]
    write_config(tmp_path, profile=profile)

    run = subprocess.run(
        ["airflow", "dags", "test", FILL], env=os.environ | connected_to(tmp_path), capture_output=True, text=True
    )

    said = " ".join((run.stdout + run.stderr).split())
    assert "The migration cannot begin, for 1 reason; nothing was changed." in said
    assert f"1. With {told}" in said
    assert system.value("SELECT to_regnamespace('pdi2_migration')") is None
    assert system.status() == 0


def quota_error(path: Path) -> tuple[str, int, bool, str]:
    with connect(path) as client, pytest.raises(WaitError) as told, naming_failures("copy team 7"):
        list(iter(lambda: client.query("SELECT 1 FROM numbers(9) WHERE number = 1").result_rows, None))
    error = told.value.__cause__
    assert isinstance(error, DatabaseError)
    return str(reaction(error)), error.code or 0, waits(error), str(told.value)


@real_engine
def test_a_quota_is_waited_for(tmp_path: Path) -> None:
    quota = "<interval><duration>3600</duration><queries>40</queries></interval>"
    react, code, is_waited_for, told = configured(tmp_path, quota_error, quota=quota)

    assert (react, code, is_waited_for) == ("retry", 201, True)
    assert "Interval will end at" in told
    assert "goes on by itself" in told


def disks(path: Path) -> tuple[tuple[str, float, float], list[str], str | None]:
    with connect(path) as client:
        client.command(schema.sql("person_distinct_id"))
        client.command(schema.sql("person_distinct_id2").replace("granularity = 512", "granularity = 512, "
                                                                 "storage_policy = 'small'"))  # fmt: skip
        client.command("INSERT INTO person_distinct_id (team_id, distinct_id) SELECT 1, randomString(9000) FROM "
                       "numbers(1000)")  # fmt: skip
    with Warehouse(lambda: connect(path), "preflight", MEMORY) as warehouse:
        return (
            pressure.disks_of_new(warehouse),
            [problem for copied in (0, 500, 1000) for problem in clickhouse_checks.disk_problems(warehouse, copied)],
            pressure.look(warehouse)[0],
        )


@real_engine
def test_only_the_disks_of_the_new_tables_policy_count(tmp_path: Path) -> None:
    """Both disks of the policy have no room (all of it is kept free), and the roomy disk is not in the policy."""
    keep = "<keep_free_space_bytes>{free}</keep_free_space_bytes>"
    nearly_all = keep.format(free=shutil.disk_usage(tmp_path).total)
    config = f"""<storage_configuration>
        <disks>
            <first><path>{tmp_path}/first/</path>{nearly_all}</first>
            <second><path>{tmp_path}/second/</path>{nearly_all}</second>
            <backup><path>{tmp_path}/backup/</path></backup>
        </disks>
        <policies><small><volumes>
            <hot><disk>first</disk></hot><cold><disk>second</disk></cold>
        </volumes></small></policies>
    </storage_configuration>"""
    (policy, free, _), problems, reason = configured(tmp_path, disks, config=config)

    assert policy == "small"
    assert free == 0
    assert ["storage policy small) have 0.0 GB free" in problem for problem in problems] == [True, True], (
        "what is copied already needs no more room"
    )
    assert reason
    assert "only 0.0 GB of the disks of person_distinct_id2 are free (storage policy small)" in reason


@pytest.mark.parametrize(("enough", "full"), [(0.5, False), (2, True)])
def test_a_disk_that_is_too_full_for_the_copy_is_reported_before_it(
    story: System, monkeypatch: pytest.MonkeyPatch, enough: float, full: bool
) -> None:
    """The disk is too full by its share, but has room for the copy. How many GB of it are enough decides."""
    warehouse = story.warehouse()
    monkeypatch.setattr(pressure, "LEAST_FREE_DISK", 1.0)
    monkeypatch.setattr(pressure, "ENOUGH_FREE_DISK", enough * pressure.disks_of_new(warehouse)[1])

    problems = clickhouse_checks.disk_problems(warehouse, 0)

    assert ["and must leave" in problem for problem in problems] == [True] * full
    assert ("of the disks" in (pressure.look(warehouse)[0] or "")) is full
