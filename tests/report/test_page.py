"""The migration page: who may see it, who may act, and what it says."""

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pytest
from airflow.models.connection import Connection
from airflow.models.dagrun import DagRun
from airflow.models.pool import Pool
from airflow.utils.session import create_session
from conftest import FILL, ROOT, System
from fastapi.testclient import TestClient
from pdi2.core.copy.copying import copy_team
from pdi2.core.engines import postgres
from pdi2.core.state.settings import Settings
from pdi2.core.switch import gate
from pdi2.edge import POOL
from stories import NO_WAIT, copy_and_verify, dump, enable, many_ids, migrate_together, plan, stop_old_writes

pytestmark = pytest.mark.usefixtures("airflow_metadata")

WEB = ROOT / "plugins" / "pdi2" / "web"
PASSWORDS = {"ann": "of ann", "vera": "of vera", "nobody": "of nobody"}
GETS = [
    "/",
    "/files/page.js",
    "/runbook",
    "/status",
    "/runs",
    "/certificates/1",
    "/teams",
    "/teams/7",
    "/findings",
    "/events",
]
LISTS = [path for path in GETS[3:] if "certificates" not in path]
POSTS = ["/pause", "/resume"]
HERE = {"Origin": "http://testserver"}
STRANGERS = [None, "", "null", "https://evil.example", "http://testserver.evil.example", "testserver"]
SORTS = ["team_id", "status", "rows", "copied", "speed", "attempts", "memory", "verified", "findings"]
COLUMNS = {"rows": "rows_source", "copied": "rows_copied", "memory": "peak_memory", "verified": "verified_at"}
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'`;--",
    "{{ 7*7 }}",
    "\u202egnp.exe\u202c",
    "\\x00 for a NUL",
    "</script><svg/onload=alert(1)>",
    "a\nb\r\tc",
    "%s %(x)s %%",
]


@pytest.fixture(scope="module")
def app(airflow_metadata: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Airflow's own API server, with the plugin, and people of three kinds."""
    passwords = tmp_path_factory.mktemp("passwords") / "passwords.json"
    passwords.write_text(json.dumps(PASSWORDS))
    people = {
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "ann:admin,vera:viewer,nobody:",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__API_AUTH__JWT_SECRET": "a secret for tests" * 4,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in people.items():
            patch.setenv(name, value)
        from airflow.api_fastapi.app import create_app

        yield create_app()


class Visitor:
    """Somebody's browser, with a session cookie if they logged in."""

    def __init__(self, app: Any, name: str | None = None, token: str | None = None) -> None:
        self.client = TestClient(app, raise_server_exceptions=False)
        if name:
            given = {"username": name, "password": PASSWORDS[name]}
            token = self.client.post("/auth/token", json=given).json()["access_token"]
        if token:
            self.client.cookies.set("_token", token)

    def get(self, path: str, **query: Any) -> Any:
        return self.client.get(f"/pdi2{path}", params=query or None)

    def post(self, path: str, headers: dict[str, str] = HERE) -> Any:
        return self.client.post(f"/pdi2{path}", headers=headers)


@pytest.fixture
def admin(app: Any) -> Visitor:
    return Visitor(app, "ann")


@pytest.fixture
def viewer(app: Any) -> Visitor:
    return Visitor(app, "vera")


def events(system: System) -> list[tuple[str, str]]:
    return system.postgres.execute("SELECT what, actor FROM pdi2_migration.event ORDER BY id").fetchall()


def find(system: System, *distinct_ids: str, team_id: int = 7, repaired: bool = True) -> None:
    """Writes findings as verify does."""
    seen = {"person_id": "00000000-0000-0000-0000-00000000000a", "is_deleted": False, "version": 1}
    system.ledger().add_findings(
        [
            {
                "team_id": team_id,
                "distinct_id": distinct_id,
                "kind": "stale",
                "repaired": repaired,
                "old": {"person_id": seen["person_id"]},
                "clickhouse": seen,
                "postgres": seen | {"version": 2},
                "action": "inserted",
                "written": seen | {"version": 2},
            }
            for distinct_id in distinct_ids
        ]
    )


# Who may see it, and who may act


def test_every_endpoint_is_on_the_lists_of_this_file(app: Any) -> None:
    from pdi2.edge import page

    routes = {(method, route.path) for route in page.app.routes for method in getattr(route, "methods", ["?"])}
    known = {
        ("GET", re.sub("/page.js$", "/{name}", re.sub("/7$", "/{team_id}", re.sub("/1$", "/{run_id}", path))))
        for path in GETS
    }

    assert routes == known | {("POST", path) for path in POSTS}


def test_without_a_session_nothing_is_seen_or_done(system: System, app: Any) -> None:
    enable(system, system.ledger())
    before = dump(system)
    for token in (None, "", "garbage", "e30.e30.e30"):
        visitor = Visitor(app, token=token)
        for answer in [*map(visitor.get, GETS), *map(visitor.post, POSTS)]:
            assert answer.status_code in (401, 403), (token, answer.url)
            assert list(answer.json()) == ["detail"], (token, answer.url)
            protected(answer)
    assert dump(system) == before


def test_whoever_may_not_read_the_dag_sees_nothing(system: System, app: Any) -> None:
    visitor = Visitor(app, "nobody")
    assert {path: visitor.get(path).status_code for path in GETS} == dict.fromkeys(GETS, 403)


@pytest.mark.parametrize("name", ["ann", "vera"])
def test_whoever_may_read_the_dag_reads_and_changes_nothing(system: System, app: Any, name: str) -> None:
    many_ids(system, 10)
    ledger = system.ledger()
    migrate_together(system, ledger)
    ledger.keep_certificate({"of-run-1.json": "{}", "of-run-1.html": "<!doctype html>"})
    before = dump(system)
    visitor = Visitor(app, name)

    for path in GETS:
        answer = visitor.get(path)
        assert answer.status_code == 200, path
        protected(answer, path)
    assert visitor.get("/status").json()["user"] == {"may_act": name == "ann"}
    assert dump(system) == before


def test_whoever_may_not_trigger_the_dag_cannot_act(system: System, viewer: Visitor) -> None:
    enable(system, system.ledger())
    before = dump(system)
    for answer in map(viewer.post, POSTS):
        assert answer.status_code == 403, answer.url
        protected(answer)
    assert dump(system) == before


def test_another_site_cannot_act_with_the_operators_session(system: System, admin: Visitor) -> None:
    enable(system, system.ledger())
    before = dump(system)
    for path, origin in itertools.product(POSTS, STRANGERS):
        assert admin.post(path, {} if origin is None else {"Origin": origin}).status_code == 403, (path, origin)
    assert dump(system) == before


def test_nothing_but_a_post_acts(system: System, admin: Visitor) -> None:
    enable(system, system.ledger())
    before = dump(system)
    for path, method in itertools.product(POSTS, ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"]):
        answer = admin.client.request(method, f"/pdi2{path}", headers=HERE)
        assert answer.status_code == 405, (method, path)
        protected(answer)
    assert dump(system) == before


def test_the_descriptions_that_fastapi_offers_are_not_there(admin: Visitor) -> None:
    for path in ("/docs", "/redoc", "/openapi.json", "/files/../page.py", "/files/..%2f..%2fpdi2_plugin.py", "/else"):
        answer = admin.get(path)
        assert answer.status_code == 404, path
        protected(answer)


def test_pausing_and_resuming_are_shown_with_their_author(system: System, admin: Visitor, viewer: Visitor) -> None:
    enable(system, system.ledger())
    assert viewer.get("/status").json()["paused"] is None

    assert admin.post("/pause").status_code == 204
    assert admin.post("/pause").status_code == 204
    assert viewer.get("/status").json()["paused"]["actor"] == "ann"
    assert admin.post("/resume").status_code == 204
    assert admin.post("/resume").status_code == 204

    assert viewer.get("/status").json()["paused"] is None
    assert events(system)[-2:] == [("paused", "ann"), ("resumed", "ann")]
    assert "paused" not in dict(events(system)[:-2])


def test_there_is_nothing_to_pause_where_no_run_is_at_work(system: System, admin: Visitor) -> None:
    assert admin.post("/pause").status_code == 409
    assert admin.post("/resume").status_code == 204
    ledger = system.ledger()
    enable(system, ledger)
    ledger.end_run("failed")

    assert admin.post("/pause").status_code == 409
    assert not {"paused", "resumed"} & {what for what, _ in events(system)}


def protected(answer: Any, path: str = "") -> None:
    """Every answer must tell the browser to run nothing except the page's own files."""
    rules = answer.headers["Content-Security-Policy"].split("; ")
    policy = {name: allowed for name, _, allowed in (rule.partition(" ") for rule in rules)}
    certificate = {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "sandbox": "",
        "frame-ancestors": "'self'",
    }
    assert (
        policy == certificate
        if path.startswith("/certificates")
        else {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'self'",
        }
    )
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"


# Hostile input


def test_what_clients_sent_leaves_as_json_and_nothing_else(system: System, viewer: Visitor) -> None:
    ledger = system.ledger()
    enable(system, ledger)
    ledger.plan({7: 1})
    ledger.set_failed([7], HOSTILE[0])
    ledger.record("task_failed", task="copy", error=HOSTILE[0])
    find(system, *HOSTILE)

    answers = {path: viewer.get(path) for path in ("/status", "/teams", "/teams/7", "/findings", "/events")}

    assert {answer.headers["Content-Type"] for answer in answers.values()} == {"application/json"}
    assert {line["distinct_id"] for line in answers["/findings"].json()["lines"]} == set(HOSTILE)
    assert answers["/teams"].json()["lines"][0]["error"] == HOSTILE[0]


def test_hostile_text_is_searched_for_as_it_is(system: System, viewer: Visitor) -> None:
    enable(system, system.ledger())
    find(system, *HOSTILE, "harmless")
    for text in HOSTILE:
        assert [line["distinct_id"] for line in viewer.get("/findings", search=text).json()["lines"]] == [text]
        assert viewer.get("/teams", search=text).json()["lines"] == []


OUT_OF_RANGE = [
    "/teams?search=%00",
    "/findings?search=a%00b",
    f"/findings?search={'x' * 401}",
    "/teams?sort=team_id;DROP TABLE pdi2_migration.team",
    "/teams?status=none",
    "/teams?limit=1000000",
    "/teams?offset=-1",
    "/teams?limit=x",
    "/teams/x",
    f"/teams/{2**63}",
    f"/findings?team_id={2**63}",
    "/findings?kind=<script>",
    "/events?limit=0",
]


def test_a_query_out_of_range_is_refused(system: System, viewer: Visitor) -> None:
    enable(system, system.ledger())
    for query in OUT_OF_RANGE:
        answer = viewer.get(query)
        assert answer.status_code == 422, query
        assert answer.headers["Content-Type"] == "application/json", query


def test_the_pages_own_files_load_nothing_from_elsewhere_and_make_no_markup_of_text() -> None:
    files = {path.name: path.read_text() for path in WEB.iterdir()}

    for name, text in files.items():
        assert not re.search(r"""(src|href|import|from|url\()\s*=?\s*["'(]?(https?:)?//""", text), name
        assert not re.search("innerHTML|outerHTML|insertAdjacentHTML|document.write|eval\\(|new Function", text), name
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", files["index.html"])
    assert set(re.findall(r'files/([\w.]+)"', files["index.html"])) <= set(files)


# What it tells


def test_without_a_ledger_it_says_that_nothing_began(system: System, viewer: Visitor) -> None:
    answer = viewer.get("/status")

    assert answer.status_code == 200
    assert answer.json()["run"] is None
    assert answer.json()["switch"]["reads"] == "old"
    assert viewer.get("/teams").status_code == 503


def test_a_database_that_cannot_be_reached_is_reported_without_its_address(
    system: System, viewer: Visitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nobody_there = {"conn_type": "postgres", "host": "127.0.0.1", "port": 1, "login": "secret", "password": "secret"}
    monkeypatch.setenv("AIRFLOW_CONN_POSTHOG_POSTGRES", json.dumps(nobody_there))
    unreachable = viewer.get("/status")
    [logged] = [line for line in caplog.records if "cannot read the ledger" in line.getMessage()]
    assert "127.0.0.1" in logged.getMessage()
    assert logged.exc_info is None, "a page that is open asks every two seconds"
    monkeypatch.delenv("AIRFLOW_CONN_POSTHOG_POSTGRES")
    undefined = viewer.get("/status")

    for answer in (unreachable, undefined):
        assert answer.status_code == 503
        assert "Airflow connection posthog_postgres" in answer.json()["detail"]
        assert "127.0.0.1" not in answer.text
        assert "secret" not in answer.text
        protected(answer)


def test_four_readers_at_a_time_are_enough(system: System, viewer: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdi2.edge.guard.WAIT_SECONDS", 0.1)
    from pdi2.edge.guard import reading

    with ExitStack() as others:
        for _ in range(4):
            others.enter_context(reading())
        refused = viewer.get("/status")
        assert (refused.status_code, "This page is busy" in refused.json()["detail"]) == (503, True)
        protected(refused)
    for _ in range(5):
        assert viewer.get("/status").status_code == 200


def test_a_role_with_the_time_limits_of_an_application_sees_the_page_and_acts(
    system: System, admin: Visitor, postgres_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page takes longer than these limits between two statements, and so does writing an event."""
    ledger = system.ledger()
    many_ids(system, 20)
    enable(system, ledger)
    plan(system, ledger)
    role = f"application_{uuid4().hex}"
    system.postgres.execute(
        f"""
        CREATE ROLE {role} SUPERUSER LOGIN;
        ALTER ROLE {role} SET idle_in_transaction_session_timeout = '1ms';
        ALTER ROLE {role} SET statement_timeout = '300ms';
        ALTER ROLE {role} SET default_transaction_isolation = 'serializable';
        CREATE FUNCTION take_long() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN PERFORM pg_sleep(0.4); RETURN NEW; END $$;
        CREATE TRIGGER take_long AFTER INSERT ON pdi2_migration.event FOR EACH ROW EXECUTE FUNCTION take_long()
        """
    )
    connection = postgres_server.airflow_connection(system.database) | {"login": role}
    monkeypatch.setenv("AIRFLOW_CONN_POSTHOG_POSTGRES", json.dumps(connection))

    assert {path: admin.get(path).status_code for path in LISTS} == dict.fromkeys(LISTS, 200)
    assert admin.post("/pause").status_code == 204
    assert system.ledger().paused()
    assert admin.post("/resume").status_code == 204

    system.postgres.execute(f"DROP ROLE {role}")


def test_a_connection_in_airflows_own_database_is_found(
    system: System, viewer: Visitor, postgres_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_POSTHOG_POSTGRES")
    given = postgres_server.airflow_connection(system.database)
    with create_session() as session:
        session.add(Connection(conn_id="posthog_postgres", **given))
    try:
        assert viewer.get("/status").status_code == 200
    finally:
        with create_session() as session:
            session.query(Connection).filter_by(conn_id="posthog_postgres").delete()


@pytest.fixture
def running() -> Iterator[str]:
    """The id of a run that Airflow knows, which has the pool of the copies."""
    Pool.create_or_update_pool(POOL, slots=2, description="", include_deferred=False)

    run_id = "manual__2026-01-01T00:00:00+00:00"
    with create_session() as session:
        session.add(DagRun(FILL, run_id, run_type="manual", state="running"))
    yield run_id
    with create_session() as session:
        session.query(DagRun).filter_by(run_id=run_id).delete()


def test_it_follows_a_migration_from_step_to_step(system: System, viewer: Visitor, running: str) -> None:
    settings = Settings(settle_seconds=0, read_cache_seconds=900, require_approval=True)
    ledger = system.ledger(f"{FILL} {running}")
    many_ids(system, 500)
    many_ids(system, 20, team_id=8)

    def told() -> tuple[str, list[str], list[str]]:
        seen = viewer.get("/status").json()
        now = [step["task"] for step in seen["steps"] if step["state"] == "now"]
        return seen["phase"], now, [wait["about"] for wait in seen["waits"]]

    enable(system, ledger, settings)
    assert told() == ("Proving that every write reaches both tables", ["prove_dual_writes"], [])
    ledger.record("dual_writes_watched", until=0, message="No miss so far.", why=None)
    assert told()[2] == ["dual_writes"]
    ledger.record("dual_writes_proven", links=0, seconds=0)
    assert told()[1] == ["plan_teams"]
    plan(system, ledger, settings)
    assert told() == ("Copying and verifying teams", ["team.copy", "team.verify"], [])
    ledger.start_copy([7])
    ledger.record("copy_waits", team_id=7, reason="a replica is 61 s behind")
    assert told()[2] == ["server"]
    ledger.record("copy_goes_on", team_id=7, waited_seconds=1)
    assert told()[2] == []
    copy_team(ledger, system.warehouse(), 7)
    assert viewer.get("/status").json()["rows"] == {"source": 520, "copied": 500, "verified": 0}
    copy_team(ledger, system.warehouse(), 8)
    assert told()[:2] == ("Verifying teams against Postgres", ["team.verify"])
    copy_and_verify(system, ledger, 7, 8)
    assert told()[1] == ["certify"]
    gate.certify(ledger, system.warehouse(), settings)
    assert told() == ("Waiting for approval of the switch", ["approve"], ["form"])
    assert viewer.get("/status").json()["verdict"]["do"] == "Nothing.", "Airflow has nothing to approve yet"
    ledger.record("approval_asked")
    assert told() == ("Waiting for approval of the switch", ["approve"], ["approval"])
    assert viewer.get("/status").json()["verdict"]["topic"] == "Waiting for approval"
    ledger.record("switch_approved", by="ann")
    for what in ("switch_waits", "switch_put_off"):
        ledger.record(what, reason="r2 is 61 s behind", since=1)
        assert told()[1:] == (["switch_reads"], ["server"])
        ledger.record("switch_waited", since=1)
        assert told()[2] == []
    gate.switch_reads(ledger, system.warehouse(), settings)
    assert told() == ("Reads are on the new table; old writes go on for now", ["stop_old_writes"], ["readers"])
    verdict = viewer.get("/status").json()["verdict"]
    assert "rollback is possible" in verdict["text"] + verdict["after"]
    stop_old_writes(system, ledger)
    ledger.record("report")
    ledger.end_run("completed")
    assert told() == ("Complete: reads are on the new table", [], [])

    seen = viewer.get("/status").json()
    assert {step["state"] for step in seen["steps"]} == {"done"}
    assert "a rollback is no longer possible" in seen["verdict"]["text"]
    assert seen["switch"] | {"finished_at": None} == {
        "status": "COMPLETED_SUCCESSFULLY",
        "progress": 100,
        "finished_at": None,
        "writes": "new",
        "reads": "new",
        "by_somebody_else": False,
        "old_lacks_writes": True,
        "found_right": None,
        "wrong": 0,
    }
    for kind in ("copied", "verified"):
        bars = seen["throughput"][kind]["rows_per_second"]
        assert sum(bars) * seen["throughput"]["width"] == pytest.approx(520, rel=1e-4)
    assert seen["links"]["run"] == f"/dags/{FILL}/runs/manual__2026-01-01T00%3A00%3A00%2B00%3A00"
    logs = [team["logs"]["copy"] for team in viewer.get("/teams").json()["lines"]]
    assert logs == [f"{seen['links']['run']}/tasks/team.copy/mapped/{index}" for index in (0, 1)]


def test_a_failed_run_says_why_and_where_it_stopped(system: System, viewer: Visitor) -> None:
    ledger = system.ledger()
    enable(system, ledger)
    ledger.record("dual_writes_proven", links=0, seconds=0)
    ledger.record("task_failed", task="plan_teams", error="no such table")
    ledger.end_run("failed")

    seen = viewer.get("/status").json()

    assert seen["phase"] == "Failed: reads stay on the old table"
    assert [(one["task"], one["cause"]) for one in seen["failures"]] == [("plan_teams", "no such table")]
    assert [step["state"] for step in seen["steps"]][:4] == ["done", "done", "stopped", "stopped"]


def test_rows_from_the_future_break_nothing(system: System, viewer: Visitor) -> None:
    """As after a clock of Postgres's host that was set back."""
    many_ids(system, 20)
    ledger = system.ledger(f"{FILL} a run")
    enable(system, ledger)
    plan(system, ledger)
    copy_team(ledger, system.warehouse(), 7)
    system.postgres.execute("UPDATE pdi2_migration.slice SET finished_at = now() + interval '1 minute'")
    seen = viewer.get("/status").json()
    assert seen["rows"]["copied"] == 20


def test_a_trial_is_about_its_own_teams(system: System, viewer: Visitor) -> None:
    ledger = system.ledger()
    trial = Settings(settle_seconds=0, read_cache_seconds=0, team_ids=(8,))
    many_ids(system, 500)
    many_ids(system, 20, team_id=8)
    plan(system, ledger, NO_WAIT)
    enable(system, ledger, trial)
    ledger.record("dual_writes_proven", links=0, seconds=0)
    plan(system, ledger, trial)

    seen = viewer.get("/status").json()

    assert seen["rows"] == {"source": 20, "copied": 0, "verified": 0}
    assert {step["task"] for step in seen["steps"] if step["state"] == "skipped"} == {
        "approve",
        "switch_reads",
        "stop_old_writes",
    }


# Many teams


@pytest.fixture
def crowd(system: System) -> None:
    """1,000 teams and 10,000 findings. ClickHouse has none of them, because the page never asks it."""
    ledger = system.ledger()
    enable(system, ledger)
    system.postgres.execute(
        """
        INSERT INTO pdi2_migration.team (team_id, status, rows_source, rows_copied, attempts, copy_seconds, peak_memory)
        SELECT id, (ARRAY['planned', 'copying', 'copied', 'verified', 'failed'])[1 + id % 5], 1000000 / id,
               1000000 / id / 2, id % 7, id, nullif(id % 3, 0) * 1000000
        FROM generate_series(1, 1000) AS id;
        INSERT INTO pdi2_migration.slice (team_id, lower, rows_copied, seconds)
        SELECT team, convert_to(number::text, 'UTF8'), 1000, 1
        FROM generate_series(1, 1000) AS team, generate_series(1, 20) AS number;
        INSERT INTO pdi2_migration.finding (team_id, distinct_id, kind, repaired, clickhouse, postgres)
        SELECT 1 + id % 1000, repeat('x', id % 390) || id, (ARRAY['missing', 'stale', 'ahead'])[1 + id % 3], id % 4 > 0,
               '{"person_id": "00000000-0000-0000-0000-00000000000a", "version": 1}', null
        FROM generate_series(1, 10000) AS id;
        INSERT INTO pdi2_migration.event (actor, what, detail)
        SELECT 'airflow', 'copy_waits', jsonb_build_object('team_id', 1 + id % 1000, 'reason', repeat('long ', 2000))
        FROM generate_series(1, 2000) AS id;
        """
    )


@pytest.mark.parametrize("path", [*LISTS, "/teams?sort=findings", "/findings?search=9", "/events?offset=1900"])
def test_an_answer_about_a_crowd_stays_small_and_takes_few_statements(
    crowd: None, viewer: Visitor, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    execute = postgres.execute

    def counted(connection: Any, name: str, *rest: Any) -> Any:
        asked.append(name)
        return execute(connection, name, *rest)

    monkeypatch.setattr(postgres, "execute", counted)

    answer = viewer.get(path)

    assert answer.status_code == 200
    assert len(answer.content) < 300_000
    assert 0 < len(asked) <= 19


@pytest.mark.slow
def test_the_pages_of_a_sorted_list_are_the_list(crowd: None, viewer: Visitor) -> None:
    for sort in SORTS:
        pages = [viewer.get("/teams", sort=sort, limit=100, offset=offset).json() for offset in range(0, 1000, 100)]
        assert {page["total"] for page in pages} == {1000}
        assert {line["team_id"] for page in pages for line in page["lines"]} == set(range(1, 1001))
        last = viewer.get("/teams", sort=sort, descending=False, limit=100).json()["lines"]
        column = COLUMNS.get(sort, sort)
        if sort != "status":
            for lines, reverse in ((pages[0]["lines"], True), (last, False)):
                values = [line[column] for line in lines if line[column] is not None]
                assert values == sorted(values, reverse=reverse)


def test_teams_are_found_by_number_status_and_error(crowd: None, system: System, viewer: Visitor) -> None:
    system.ledger().set_failed([123], "ClickHouse error 241: Memory LIMIT")

    def found(**query: Any) -> list[int]:
        page = viewer.get("/teams", sort="team_id", descending=False, **query).json()
        return [line["team_id"] for line in page["lines"]]

    assert found(search="12") == [12, *range(120, 130)]
    assert found(search="memory limit") == [123]
    assert found(search="12", status="failed") == [123, 124, 129]
    assert found(search="no such") == []
    assert found(offset=1000) == []


def test_findings_are_filtered(crowd: None, viewer: Visitor) -> None:
    def total(**query: Any) -> int:
        return viewer.get("/findings", **query).json()["total"]

    assert total() == 10_000
    assert total(team_id=7) == 10
    assert total(repaired=False) == 2_500
    assert total(kind="ahead", repaired=False) + total(kind="ahead", repaired=True) == total(kind="ahead")
    assert total(search="x9999") == 1
