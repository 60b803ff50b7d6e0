"""The demo ClickHouse server, through the clients that the project and Airflow use."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import clickhouse_connect
import lz4.frame
import pytest
import urllib3
from backports import zstd
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError, StreamFailureError
from stories import until

from demo.alone import free_port
from demo.clickhouse_server import Server, running

PASSWORD = 'it\'s a "secret" \\ ü'
ROWS = [[number, f"row {number}"] for number in range(100_000)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("clickhouse"), password=PASSWORD, faults_token="token") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    server.inject()
    with server.connect() as client:
        yield client


@pytest.fixture
def table(client: Client) -> str:
    client.command("CREATE OR REPLACE TABLE numbered (id UInt64, text String) ENGINE = MergeTree ORDER BY id")
    return "numbered"


def http(server: Server, sql: str = "", body: bytes | None = None, **options: Any) -> urllib3.BaseHTTPResponse:
    """Sends a request that clickhouse-connect would not send."""
    login = {"X-ClickHouse-User": server.user, "X-ClickHouse-Key": server.password.encode()}
    headers = login | options.pop("headers", {})
    more = {"preload_content": options.pop("preload_content", True), "retries": False, "timeout": 20}
    url = f"http://127.0.0.1:{server.port}/?{urlencode(({'query': sql} if sql else {}) | options)}"
    return urllib3.request("POST", url, body=body, headers=headers, **more)


def test_speaks_to_the_official_hook(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.clickhousedb.hooks.clickhouse import ClickHouseHook

    monkeypatch.setenv("AIRFLOW_CONN_DEMO_CLICKHOUSE", json.dumps(server.airflow_connection("default")))
    hook = ClickHouseHook(clickhouse_conn_id="demo_clickhouse")
    hook.run("CREATE OR REPLACE TABLE hooked (id UInt8, text String) ENGINE = Memory")
    hook.bulk_insert_rows("hooked", [(1, "one"), (2, "two")], ["id", "text"])
    assert hook.get_records("SELECT * FROM hooked ORDER BY id") == [(1, "one"), (2, "two")]


def test_it_is_started_by_the_command_that_scripts_outside_the_project_rely_on(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "demo", "clickhouse", "--path", str(tmp_path / "new"), "--port", str(port)]
    for rows in (1, 2):
        with subprocess.Popen(command) as process:
            try:
                until(Server(tmp_path, port).answers)
                with clickhouse_connect.get_client(host="127.0.0.1", port=port) as client:
                    client.command("CREATE TABLE IF NOT EXISTS kept (id UInt64) ENGINE = MergeTree ORDER BY id")
                    client.insert("kept", [[rows]])
                    assert client.command("SELECT count() FROM kept") == rows
            finally:
                process.terminate()
        assert process.returncode == 0


def test_binds_parameters_and_any_bytes(client: Client) -> None:
    text = "it's\ta \\ tab\nand ü {x:String}"
    assert client.query("SELECT {t:String}, {n:Array(Int64)}", {"t": text, "n": [1, -2]}).first_row == (
        text,
        [1, -2],
    )
    raw = bytes(range(256))
    assert client.query("SELECT hex(unhex({raw:String}))", {"raw": raw.hex()}).first_row == (raw.hex().upper(),)
    assert client.query("SELECT length({t:String})", {"t": "x" * 200_000}).first_row == (
        200_000,
    )  # a form, not the URL
    assert client.command("SELECT 'a', 2") == ["a", "2"]


@pytest.mark.parametrize("compress", [False, "lz4", "gzip", "zstd"])
def test_inserts_compressed_rows(server: Server, table: str, compress: bool | str) -> None:
    with server.connect(compress=compress) as client:
        summary = client.insert(table, ROWS, column_names=["id", "text"], settings={"max_insert_block_size": 10_000})
        assert summary.written_rows == len(ROWS)
        assert client.query(f"SELECT * FROM {table} ORDER BY id").result_rows == [tuple(row) for row in ROWS]


@pytest.mark.parametrize(
    ("sql", "body"),
    [
        ("INSERT INTO numbered FORMAT CSV", b'7,"a;b"\n'),
        (
            "INSERT INTO numbered (id, text) SETTINGS max_threads = 1 FORMAT JSONEachRow",
            b'{"id":7,"text":"a;b"}',
        ),
        ("", b"/* FORMAT */ INSERT INTO `numbered` (id, text) FORMAT TSV\n7\ta;b\n"),
        ("", b"INSERT INTO numbered VALUES (7, 'a;b')"),
        ("INSERT INTO numbered SELECT 7, 'a;b'", b""),
    ],
    ids=["csv", "settings", "body", "values", "select"],
)
def test_inserts_from_url_and_body(server: Server, client: Client, table: str, sql: str, body: bytes) -> None:
    response = http(server, sql, body)
    assert response.status == 200, response.data
    assert json.loads(response.headers["X-ClickHouse-Summary"])["written_rows"] == "1"
    assert client.query(f"SELECT * FROM {table}").result_rows == [(7, "a;b")]


def test_refuses_a_damaged_body(server: Server, client: Client, table: str) -> None:
    for encoding, body in {
        "lz4": lz4.frame.compress(b"1\tx\n")[:-6],
        "zstd": zstd.compress(b"1\tx\n")[1:],
    }.items():
        response = http(server, f"INSERT INTO {table} FORMAT TSV", body, headers={"Content-Encoding": encoding})
        assert (response.status, response.headers["X-ClickHouse-Exception-Code"]) == (400, "117"), response.data
    assert client.command(f"SELECT count() FROM {table}") == 0


def test_answers_in_the_format_asked_for(server: Server) -> None:
    assert http(server, "SELECT 1 AS x", default_format="CSVWithNames").data == b'"x"\n1\n'
    assert http(server, "SELECT 1 AS x", headers={"X-ClickHouse-Format": "JSONEachRow"}).data == b'{"x":1}\n'
    assert http(server, "SELECT 1 AS x FORMAT CSV SETTINGS max_threads = 1").data == b"1\n"
    assert json.loads(http(server, "SELECT number FROM numbers(200000)", default_format="JSON").data)["rows"] == 200_000
    assert http(server, "SHOW DATABASES LIKE 'default'", default_format="Native").data.endswith(b"\x07default")
    assert urllib3.request("GET", f"http://127.0.0.1:{server.port}/ping").data == b"Ok.\n"


def test_streams_more_than_it_could_hold(server: Server, client: Client) -> None:
    assert server.process
    peak = Path(f"/proc/{server.process.pid}/status")

    def resident() -> int:
        return int(peak.read_text().split("VmRSS:")[1].split()[0]) // 1024

    before, most, rows = resident(), 0, 0
    with client.query_column_block_stream("SELECT number, number FROM numbers(50000000)") as blocks:  # 800 MB
        for block in blocks:
            rows += len(block[0])
            if rows % 100 == 0:
                most = max(most, resident())
    assert rows == 50_000_000
    assert most - before < 400


def test_an_error_in_the_middle_of_a_stream_is_an_error(client: Client) -> None:
    sql = "SELECT throwIf(number = 1000000, 'here') FROM numbers(2000000) SETTINGS max_block_size = 1000"
    with (
        pytest.raises(StreamFailureError, match="here") as error,
        client.query_row_block_stream(sql) as blocks,
    ):
        for _ in blocks:
            pass
    assert error.value.code == 395


@pytest.mark.parametrize(
    ("sql", "code", "status"),
    [
        ("SELECT * FROM nowhere", 60, 404),
        ("SELECT 1 SETTINGS no_such_setting = 1", 115, 404),
        ("garbage", 62, 400),
        ("SELECT 1; SELECT 2", 62, 400),
        ("", 62, 400),
        ("SELECT throwIf(1)", 395, 500),
        ("INSERT INTO numbered SELECT id FROM input('id UInt8') FORMAT TSV\n1", 48, 501),
        ("SELECT count() FROM numbers(1000000000000) SETTINGS max_execution_time = 0.1", 159, 408),
        ("SELECT groupArray(number) FROM numbers(10000000) SETTINGS max_memory_usage = 10000000", 241, 500),
    ],
)
def test_errors_carry_their_code(server: Server, sql: str, code: int, status: int) -> None:
    response = http(server, sql, default_format="Native", wait_end_of_query=1)
    seen = response.status, response.headers["X-ClickHouse-Exception-Code"]
    assert seen == (status, str(code)), response.data
    assert response.data.startswith(f"Code: {code}. DB::Exception: ".encode())


def test_a_client_sees_the_name_of_an_error(client: Client) -> None:
    with pytest.raises(DatabaseError) as error:
        client.query("SELECT * FROM nowhere")
    assert (error.value.code, error.value.name) == (60, "UNKNOWN_TABLE")


def test_the_servers_memory_limit_is_total(tmp_path: Path) -> None:
    with running(tmp_path, max_memory=500_000_000) as small, small.connect() as client:
        with pytest.raises(DatabaseError, match=r"\(total\) memory limit exceeded") as error:
            client.query("SELECT groupArray(number) FROM numbers(100000000)")
        assert error.value.code == 241
        assert small.stop() == 0


@pytest.mark.parametrize(
    ("user", "password", "status", "code"),
    [("default", "wrong", 403, "516"), ("stranger", PASSWORD, 403, "516"), ("", "", 401, "194")],
)
def test_refuses_strangers(server: Server, user: str, password: str, status: int, code: str) -> None:
    url = f"http://127.0.0.1:{server.port}/?query=SELECT+1&" + urlencode({"user": user, "password": password})
    response = urllib3.request("GET", url, retries=False)
    assert (response.status, response.headers["X-ClickHouse-Exception-Code"]) == (status, code)


def test_a_server_has_a_password_of_its_own(tmp_path: Path) -> None:
    """Any user of the machine reaches its port: `make demo` and `make soak` give it no password themselves."""
    server, another = Server(tmp_path), Server(tmp_path)
    assert len(server.password) > 20
    assert server.password not in (another.password, repr(server))


def test_a_session_keeps_settings_and_temporary_tables(server: Server) -> None:
    with server.connect(session_id="mine") as mine, server.connect(session_id="other") as other:
        mine.command("CREATE TEMPORARY TABLE kept (id UInt8)")
        mine.insert("kept", [[1], [2]], column_names=["id"])
        mine.command("SET max_block_size = 1234")
        mine.command("SELECT 1", settings={"max_block_size": 99, "log_comment": "once"})
        seen = mine.query("SELECT sum(id), getSetting('max_block_size'), getSetting('log_comment') FROM kept").first_row
        assert seen == (3, 1234, "")
        with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
            other.query("SELECT * FROM kept")
    missing = http(server, "SELECT 1", session_id="nobody's", session_check=1)
    assert missing.headers["X-ClickHouse-Exception-Code"] == "372"


def test_kills_a_query_and_locks_its_session(server: Server, client: Client) -> None:
    sql = "SELECT sleepEachRow(0.01) FROM numbers(9999) SETTINGS max_block_size = 10, log_comment = 'slow one'"
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(http, server, sql, query_id="slow'one", session_id="slow", wait_end_of_query=1)
        look = "SELECT Settings['log_comment'] FROM system.processes WHERE query_id = 'slow\\'one'"
        assert until(lambda: client.query(look).result_rows) == [("slow one",)]
        assert http(server, "SELECT 1", session_id="slow").headers["X-ClickHouse-Exception-Code"] == "373"
        assert http(server, "SELECT 1", query_id="slow'one").headers["X-ClickHouse-Exception-Code"] == "216"
        client.command("KILL QUERY WHERE query_id = 'slow\\'one' SYNC")
        answer = slow.result()
    assert answer.headers["X-ClickHouse-Exception-Code"] == "394"
    assert answer.headers["X-ClickHouse-Query-Id"] == "slow'one"


def test_a_reading_query_ends_when_its_client_leaves(server: Server, client: Client) -> None:
    sql = "SELECT sum(sleepEachRow(0.01)) FROM numbers(100000) SETTINGS max_block_size = 10"
    with server.connect(send_receive_timeout=1) as hasty, pytest.raises(OperationalError):
        hasty.query(sql)
    endless = http(server, "SELECT number FROM numbers(1000000000000)", preload_content=False)
    endless.read(1000)
    endless.close()
    look = "SELECT count() FROM system.processes WHERE match(query, 'numbers.(100000|1000000000000)[)]')"
    until(lambda: client.command(f"{look} AND query NOT LIKE '%processes%'") == 0)


def test_reports_the_memory_that_a_statement_took(client: Client) -> None:
    summary = client.query(
        "SELECT uniqExact(number), sleep(0.3) FROM numbers(1000000)", settings={"query_id": "big"}
    ).summary
    assert int(summary["memory_usage"]) > 1_000_000
    assert (summary["query_id"], summary["read_rows"]) == ("big", "1000000")
    client.command("SYSTEM FLUSH LOGS")
    logged = client.query("SELECT memory_usage FROM system.query_log WHERE query_id = 'big' AND type = 'QueryFinish'")
    assert logged.result_rows[0][0] >= int(summary["memory_usage"])


def test_serves_many_clients_at_once(server: Server, client: Client, table: str) -> None:
    together = threading.Barrier(6)

    def work(number: int) -> int:
        with server.connect() as mine:
            together.wait()
            for _ in range(5):
                mine.insert(table, [[number, "x"]] * 100, column_names=["id", "text"])
            return mine.query(f"SELECT count() FROM {table} WHERE id = {number}").result_rows[0][0]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(6))) == [500] * 6


@pytest.mark.parametrize(
    ("fault", "raised", "runs"),
    [
        ({"action": "refuse"}, "HTTP status 503", False),
        ({"action": "delay", "seconds": 0.3}, None, True),
        ({"action": "cut_before"}, "Connection", False),
        ({"action": "cut_after"}, "Connection", True),
        ({"action": "error", "code": 241}, "Query memory limit exceeded", False),
        (
            {"action": "error", "code": 241, "text": "(total) memory limit exceeded"},
            r"\(total\) memory limit",
            False,
        ),
        ({"action": "error", "code": 159}, "TIMEOUT_EXCEEDED", False),
        ({"action": "error", "code": 202}, "TOO_MANY_SIMULTANEOUS_QUERIES", False),
        ({"action": "error", "code": 243}, "NOT_ENOUGH_SPACE", False),
        ({"action": "error", "code": 252}, "TOO_MANY_PARTS", False),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_fault_hits_the_statements_that_it_names(
    server: Server, client: Client, table: str, fault: dict[str, Any], raised: str | None, runs: bool
) -> None:
    server.inject({"match": f"insert into {table}", "skip": 1, **fault})
    insert = f"INSERT INTO {table} SELECT 1, 'x'"
    client.command(insert)
    before = time.monotonic()
    if raised:
        with pytest.raises(DatabaseError, match=raised):
            client.command(insert)
    else:
        client.command(insert)
    assert time.monotonic() - before >= fault.get("seconds", 0)
    assert client.command(f"SELECT count() FROM {table}") == 1 + runs
    client.command(insert)
    assert [(seen["matched"], seen["fired"]) for seen in server.faults()] == [(3, 1)]


def test_faults_are_for_those_who_have_the_token(server: Server) -> None:
    stranger = Server(server.path, server.port, faults_token="guess")
    with pytest.raises(RuntimeError, match="403"):
        stranger.inject({"match": "", "action": "die"})
    with pytest.raises(RuntimeError, match="unknown action"):
        server.inject({"match": "", "action": "explode"})


@pytest.mark.slow
def test_comes_back_with_its_data(tmp_path: Path) -> None:
    def die() -> int:
        mortal.inject({"match": "SELECT 'last words'", "action": "die"})
        with mortal.connect() as client, pytest.raises(OperationalError):
            client.command("SELECT 'last words'")
        assert mortal.process
        return mortal.process.wait(10)

    def interrupt() -> int:
        return mortal.stop(signal.SIGINT)

    with running(tmp_path, faults_token="token") as mortal:
        with mortal.connect() as client:
            client.command("CREATE TABLE kept (id UInt64) ENGINE = MergeTree ORDER BY id")
        ends: dict[Callable[[], int], int] = {die: 137, mortal.kill: -9, interrupt: 0}
        for rounds, (end, code) in enumerate(ends.items(), 1):
            with mortal.connect() as client:
                client.insert("kept", [[id] for id in range(1000)], column_names=["id"])
            assert end() == code
            mortal.start()
            with mortal.connect() as client:
                seen = client.query("SELECT count(), sum(id) FROM kept").first_row
            assert seen == (1000 * rounds, 499_500 * rounds)
