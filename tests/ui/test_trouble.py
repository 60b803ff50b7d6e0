"""The page when something is wrong, and when somebody looks from a phone or another time zone, in this order.

It begins after a migration and its rollback. ClickHouse is killed in the next migration, which is then marked as
failed. Once ClickHouse is back, the last migration runs to its irreversible end.
"""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from demo import clickhouse_server
from demo.screenshots import PHONE
from demo.up import is_healthy, stop

from .conftest import AIRFLOW_WORKS, FILL, ROLLBACK, Person, Up, axe

pytestmark = pytest.mark.ui

LETTER = 12
"""In pixels. No letter is wider than this."""
POOL = "pdi2_copies"


@pytest.fixture(scope="module", autouse=True)
def rolled_back(browser: Browser, up: Up) -> None:
    """Runs a migration and its rollback, unless the stories have done so."""
    context = browser.new_context()
    person = Person(context, up)
    person.logs_in("admin")

    def told() -> dict[str, Any]:
        return context.request.get(f"{up.address}/pdi2/status", timeout=120_000).json()

    for dag_id, phase in ((FILL, "Complete"), (ROLLBACK, "Rolled back")):
        if not (told().get("phase") or "").startswith("Rolled back"):
            trigger(person, dag_id, **({"settle_seconds": 5, "stop_old_writes": False} if dag_id == FILL else {}))
            deadline = time.monotonic() + AIRFLOW_WORKS / 1000
            while not (told().get("phase") or "").startswith(phase):
                assert time.monotonic() < deadline, told()
                time.sleep(1)
    context.close()


@pytest.fixture
def page(person: Person) -> Page:
    """The page that Airflow shows in a frame, opened without the frame."""
    person.logs_in("admin")
    person.page.goto(f"{person.up.address}/pdi2/")
    expect(person.page.get_by_role("heading", level=1)).not_to_have_text("Loading")
    return person.page


@pytest.fixture
def first(page: Page) -> Locator:
    """The first line of the page."""
    return page.get_by_role("region", name="Safe or not")


@pytest.fixture
def waits(page: Page) -> Locator:
    return page.get_by_role("list", name="What the migration waits for, and what is wrong")


@pytest.fixture
def without_the_connection(up: Up) -> Iterator[Up]:
    """Another API server of the same Airflow, whose environment lacks the connection."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = environment_of(up) | {"AIRFLOW__API__PORT": str(port)}
    del environment["AIRFLOW_CONN_POSTHOG_POSTGRES"]
    there = replace(up, address=f"http://127.0.0.1:{port}")
    with (up.directory / "another_api_server.log").open("wb") as log:
        server = subprocess.Popen(
            ["airflow", "api-server"], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + AIRFLOW_WORKS / 1000
        while not is_healthy(there.address):
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(1)
        yield there
    finally:
        stop(server)


def trigger(person: Person, dag_id: str = FILL, **conf: Any) -> str:
    """Triggers a run through Airflow's API, because test_stories tests the form. Returns the run's id."""
    answer = person.page.request.post(
        f"{person.up.address}/api/v2/dags/{dag_id}/dagRuns", data={"logical_date": None, "conf": conf}
    )
    assert answer.ok, answer.text()
    return answer.json()["dag_run_id"]


def test_after_the_rollback_the_first_line_says_to_restart_posthog(page: Page, first: Locator) -> None:
    expect(first).to_contain_text("Safe: rolled back.")
    expect(first).to_contain_text("Restart PostHog's processes")
    first.get_by_text("Runbook: Rolled back").click()
    expect(first.get_by_role("definition").first).to_be_visible()
    with page.expect_response(lambda answer: "/pdi2/status" in answer.url):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(first.get_by_role("definition").first).to_be_visible()
    expect(page.get_by_role("region", name="Progress")).to_be_hidden()
    expect(page.get_by_text("written when the run ends")).to_have_count(0)
    assert axe(page) == []


def test_every_run_is_listed_and_its_certificate_opens_and_downloads(person: Person, page: Page) -> None:
    runs = page.get_by_role("region", name="Runs of the migration")
    expect(runs.get_by_text("rolled back")).to_be_visible()
    completed = runs.get_by_role("row").filter(has_text="completed")

    with page.expect_download() as saved:
        completed.get_by_role("link", name="Download").click()
    assert "Certificate of migration" in Path(saved.value.path()).read_text()
    assert saved.value.suggested_filename.endswith("-completed.html")
    completed.get_by_role("link", name="Open", exact=True).click()

    expect(page.get_by_role("heading", name="Certificate of migration")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).fontSize") != "32px", "its style applies"


def test_the_tab_of_a_run_is_about_that_run(person: Person, page: Page) -> None:
    """The run is a dry run. After it, the page itself still shows the rollback."""
    run_id = trigger(person, dry_run=True)
    tab = person.page.context.new_page()
    tab.goto(f"{person.up.address}/dags/{FILL}/runs/{quote(run_id, safe='')}/plugin/migration-of-run")
    shown = tab.frame_locator("iframe")

    expect(shown.get_by_role("heading", name="Dry run: planned: nothing was written")).to_be_visible(
        timeout=AIRFLOW_WORKS
    )
    expect(shown.get_by_role("heading", level=1)).to_have_text("This run changed nothing")
    expect(shown.get_by_role("region", name="The plan")).to_contain_text("none is left to copy")
    expect(page.get_by_role("heading", level=1)).to_have_text("Rolled back: reads are on the old table")
    assert person.barriers(f"/pdi2/?dag={FILL}&run={quote(run_id, safe='')}") == []


def test_the_audit_log_shows_milestones_as_sentences(page: Page) -> None:
    log = page.get_by_role("region", name="What happened, and who did it")

    expect(log.get_by_text("Reads were switched to the new table.").first).to_be_visible()
    expect(log.get_by_text("Reads were measured")).to_have_count(0)
    page.get_by_role("search", name="Audit log").get_by_label("Show").select_option("everything")
    expect(log.get_by_text("Reads were measured on team")).not_to_have_count(0)
    assert not [text for text in log.get_by_role("cell").all_inner_texts() if "{" in text or "_at" in text]


def test_a_page_that_stays_open_overnight_says_the_day(page: Page) -> None:
    shown = page.locator("#events time").first
    expect(shown).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))

    page.clock.set_fixed_time(datetime.now(UTC) + timedelta(days=1))
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    expect(shown).to_have_text(re.compile(r"20\d\d, \d\d:\d\d:\d\d$"))


def test_times_are_in_the_zone_that_was_picked_in_airflow(page: Page) -> None:
    page.evaluate("localStorage.setItem('timezone', JSON.stringify('Asia/Kathmandu'))")
    page.reload()

    expect(page.get_by_text("Times are in Asia/Kathmandu, GMT+5:45.")).to_be_visible()
    started = page.locator("#run time")
    shown = started.evaluate(
        "at => new Date(at.dateTime).toLocaleTimeString('en-GB', {timeZone: 'Asia/Kathmandu', hourCycle: 'h23'})"
    )
    expect(started).to_contain_text(shown)


def test_an_empty_id_and_the_kinds_of_findings_are_told_apart(person: Person, page: Page) -> None:
    with person.up.postgres.connect("posthog") as postgres:
        postgres.execute(
            "INSERT INTO pdi2_migration.finding (team_id, distinct_id, kind, repaired)"
            " SELECT 4242, '', kind, false"
            " FROM unnest(ARRAY['missing', 'stale', 'wrong_person', 'resurrected', 'ahead']) AS kind"
        )
    page.get_by_role("search", name="Findings").get_by_label("Team").fill("4242")
    findings = page.get_by_role("region", name="Ids on which")

    expect(findings.get_by_role("rowheader", name='""', exact=True)).to_have_count(5)
    marks = findings.locator(".badge").evaluate_all(
        "found => found.map(one => getComputedStyle(one, '::before')).map(mark => mark.clipPath)"
    )
    assert len(set(marks)) == 5
    assert axe(page) == []
    with person.up.postgres.connect("posthog") as postgres:
        postgres.execute("DELETE FROM pdi2_migration.finding WHERE team_id = 4242")


def test_on_a_phone_nothing_is_one_letter_wide(browser: Browser, up: Up) -> None:
    context = browser.new_context(viewport=PHONE)
    person = Person(context, up)
    person.logs_in("admin")
    person.page.goto(f"{up.address}/pdi2/")
    expect(person.page.get_by_role("region", name="Teams of the migration").get_by_role("row").nth(1)).to_be_visible()

    widths = person.page.locator("td, dd, .id, .sentence, li").evaluate_all(
        "found => found.filter(one => one.textContent.trim().length > 3 && one.offsetWidth).map(one => one.offsetWidth)"
    )
    assert min(widths) > 3 * LETTER
    assert person.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert axe(person.page) == []
    context.close()


def test_a_ledger_that_does_not_answer_leaves_what_was_seen_and_says_as_of_when(person: Person, page: Page) -> None:
    with person.up.postgres.connect("posthog") as postgres, postgres.transaction():
        postgres.execute("LOCK TABLE pdi2_migration.run IN ACCESS EXCLUSIVE MODE")

        expect(page.get_by_role("alert")).to_contain_text("The ledger cannot be read")
        expect(page.get_by_role("alert")).to_contain_text("Everything below is as of ")
        assert float(page.locator("#migration").evaluate("one => getComputedStyle(one).opacity")) < 1
        assert axe(page) == []
    expect(page.get_by_role("alert")).to_be_hidden()
    assert page.locator("#migration").evaluate("one => getComputedStyle(one).opacity") == "1"


def test_a_missing_connection_is_named_with_the_remedy(browser: Browser, without_the_connection: Up) -> None:
    context = browser.new_context()
    person = Person(context, without_the_connection)
    person.logs_in("admin")
    migration = person.opens_the_migration()

    expect(migration.get_by_role("alert")).to_contain_text("The Airflow connection posthog_postgres does not exist")
    expect(migration.get_by_role("alert")).to_contain_text("set AIRFLOW_CONN_POSTHOG_POSTGRES for the API server too")
    expect(migration.get_by_role("heading", level=1)).to_have_text("Nothing is known yet")
    page = context.new_page()
    page.goto(f"{without_the_connection.address}/pdi2/")
    expect(page.get_by_role("alert")).to_be_visible()
    assert axe(page) == []
    context.close()


def test_a_missing_pool_is_named_with_the_remedy(person: Person, page: Page, waits: Locator) -> None:
    pools = f"{person.up.address}/api/v2/pools"
    assert page.request.delete(f"{pools}/{POOL}").ok
    page.reload()

    expect(waits).to_contain_text(f"Airflow has no pool {POOL}, and without it no copy begins.")
    expect(waits).to_contain_text(f"airflow pools set {POOL} 2 copies")
    assert axe(page) == []
    assert page.request.post(pools, data={"name": POOL, "slots": 2}).ok
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("Rolled back: reads are on the old table")
    expect(waits.get_by_role("listitem")).to_have_count(0)


def test_a_trial_says_that_it_never_switches_and_what_comes_next(page: Page, person: Person, first: Locator) -> None:
    with person.up.postgres.connect("posthog") as postgres:
        team_ids = [postgres.execute("SELECT min(team_id) FROM pdi2_migration.team").fetchone()[0]]  # type: ignore[index]
    trigger(person, team_ids=team_ids, settle_seconds=30)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # at rest it looks every 15 s
    expect(first).to_contain_text("This is a trial: it never switches reads.", timeout=AIRFLOW_WORKS)
    assert person.barriers() == []

    heading = page.get_by_role("heading", level=1)
    expect(heading).to_have_text("The trial passed: reads stay on the old table", timeout=AIRFLOW_WORKS)
    expect(first).to_contain_text("Trigger the DAG without team_ids to migrate all teams.")
    expect(page.get_by_role("region", name="Runs of the migration").get_by_text("trial passed")).to_be_visible()
    assert person.barriers() == []


def test_a_rejected_switch_leaves_readers_where_they_are(page: Page, person: Person, first: Locator) -> None:
    trigger(person, settle_seconds=5, require_approval=True)
    expect(first).to_contain_text("Approve the switch, or reject it.", timeout=AIRFLOW_WORKS)
    page.get_by_role("link", name="Approve the switch").click()
    with page.expect_response(lambda answer: answer.url.endswith("/hitlDetails") and answer.request.method == "PATCH"):
        page.get_by_role("button", name="Reject", exact=True).click()
    page.goto(f"{person.up.address}/pdi2/")

    heading = page.get_by_role("heading", level=1)
    expect(heading).to_have_text("The switch was rejected: reads stay on the old table", timeout=AIRFLOW_WORKS)
    expect(first).to_contain_text("A new run asks for approval again.")
    log = page.get_by_role("region", name="What happened, and who did it")
    expect(log.get_by_text("admin rejected the switch.")).to_be_visible()
    assert person.barriers() == []


def test_a_dead_clickhouse_is_named_with_the_retries_and_then_refuses_the_next_run(
    person: Person, page: Page, first: Locator, waits: Locator
) -> None:
    run_id = trigger(person, settle_seconds=86_400)
    phase = page.get_by_role("heading", level=1)
    expect(phase).to_have_text("Proving that every write reaches both tables", timeout=AIRFLOW_WORKS)
    expect(page.locator("#copied-rows")).to_have_text("not planned yet")
    expect(page.locator("#numbers").get_by_text("100.0 %")).to_have_count(0)
    expect(first).to_contain_text("Nothing is irreversible before old writes stop")
    os.kill(process_of(person.up, b"clickhouse_server"), signal.SIGKILL)

    expect(waits).to_contain_text("ClickHouse has not answered since", timeout=AIRFLOW_WORKS)
    expect(waits).to_contain_text(re.compile(r"1 task is up for retry: try \d of 7\. The next is due at "))
    expect(first).to_contain_text("Safe, but nothing moves")
    folded = waits.get_by_text("What the last try met")
    folded.click()
    for _ in range(2):
        with page.expect_response(lambda answer: "/pdi2/status" in answer.url):
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(folded).to_be_focused()
    assert person.barriers() == []

    failed = person.page.request.patch(
        f"{person.up.address}/api/v2/dags/{FILL}/dagRuns/{quote(run_id, safe='')}", data={"state": "failed"}
    )
    assert failed.ok, failed.text()
    expect(phase).to_have_text("Failed: reads stay on the old table", timeout=AIRFLOW_WORKS)
    expect(page.get_by_text("Times are in")).to_contain_text("failed")
    expect(first).to_contain_text("The run stopped; what is finished is kept.")
    trigger(person)
    refused = page.get_by_role("region", name="A run without a report")
    expect(refused).to_contain_text("refused: nothing was changed", timeout=AIRFLOW_WORKS)
    expect(refused.get_by_role("listitem").first).to_contain_text("ClickHouse cannot be reached")
    expect(refused.get_by_role("listitem").first).to_have_css("white-space", "pre-line")  # it may have several lines
    assert person.barriers() == []


@pytest.fixture
def clickhouse_again(up: Up) -> Iterator[None]:
    """Starts ClickHouse again on its port and its data. Its password comes from Airflow's connection."""
    connection = json.loads(environment_of(up)["AIRFLOW_CONN_POSTHOG_CLICKHOUSE"])
    with clickhouse_server.running(
        up.directory / "clickhouse", port=connection["port"], password=connection["password"]
    ):
        yield


@pytest.mark.usefixtures("clickhouse_again")
def test_it_is_said_from_when_on_the_migration_is_irreversible(person: Person, page: Page, first: Locator) -> None:
    trigger(person, settle_seconds=5, read_cache_seconds=40)

    expect(first).to_contain_text("Old writes stop at", timeout=AIRFLOW_WORKS)
    expect(first).to_contain_text("until then a rollback is possible; after that it is irreversible.")
    with person.up.postgres.connect("posthog") as postgres:
        postgres.execute(
            "INSERT INTO pdi2_migration.event (actor, what, detail)"
            """ VALUES ('ann', 'old_writes_put_off', '{"reason": "1 link reached person_distinct_id alone."}')"""
        )
        expect(first).to_contain_text("Old writes wait, and a rollback is possible.")
        expect(first).to_contain_text("1 link reached person_distinct_id alone. Or roll back.")
        expect(page.get_by_role("link", name="Roll back")).to_be_visible()
        postgres.execute("DELETE FROM pdi2_migration.event WHERE actor = 'ann'")
    assert person.barriers() == []
    expect(first).to_contain_text("this is irreversible, and a rollback is no longer possible", timeout=AIRFLOW_WORKS)
    expect(page.get_by_role("heading", level=1)).to_have_text("Complete: reads are on the new table")
    expect(page.get_by_role("link", name="Roll back")).to_have_count(0)
    peak = page.locator("#numbers dt", has_text="Peak memory").locator("+ dd")
    # Whether a statement lasted long enough to be measured depends on the machine.
    expect(peak).to_have_text(re.compile(r"^(not measured|[1-9][\d,]* MB)$"))
    assert person.barriers() == []


def environment_of(up: Up) -> dict[str, str]:
    """Airflow's, with its connections."""
    airflow = Path(f"/proc/{process_of(up, b'standalone')}/environ").read_text()
    return dict(one.split("=", 1) for one in airflow.split("\0") if one)


def process_of(up: Up, name: bytes) -> int:
    """The child process of `make up` that has this name in its command line."""
    for children in Path(f"/proc/{up.pid}/task").glob("*/children"):
        for pid in children.read_text().split():
            if name in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    raise AssertionError(f"make up runs no {name!r}")
