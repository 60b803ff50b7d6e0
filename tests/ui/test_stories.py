"""A migration as people see it, from the login to the rollback. The tests run in this order, on one system."""

import re
from contextlib import suppress
from urllib.parse import unquote

import pytest
from playwright.sync_api import Locator, TimeoutError, expect

from demo import schema

from .conftest import AIRFLOW_WORKS, FILL, ROLLBACK, Person, Up, axe

pytestmark = pytest.mark.ui

HOSTILE = ["<script>window.hacked = 1</script>", "<img src=x onerror='window.hacked = 1'>", "\u202egnp.exe", "'\"`; --"]
TEAM = 666


@pytest.fixture(scope="module", autouse=True)
def _lost_updates(up: Up) -> None:
    """Ids of a client that means harm. Kafka never delivered them, so only Postgres knows them."""
    with up.postgres.connect("posthog") as postgres:
        schema.add_team(postgres, TEAM)
        for distinct_id in HOSTILE:
            postgres.execute(
                """
                WITH person AS (
                    INSERT INTO posthog_person (team_id, uuid) VALUES (%(team)s, gen_random_uuid()) RETURNING id
                )
                INSERT INTO posthog_persondistinctid (team_id, distinct_id, person_id, version)
                SELECT %(team)s, %(id)s, id, 0 FROM person
                """,
                {"team": TEAM, "id": distinct_id},
            )


def trigger(person: Person, **numbers: str) -> None:
    """Triggers a run with Airflow's own form, opened from the DAG's page."""
    page = person.page
    page.get_by_role("button", name="Trigger").click()
    form = page.get_by_role("dialog").last
    for name, value in numbers.items():
        field = form.locator(f"input[name=element_{name}]")
        opens_its_section(form, field)
        if value in ("on", "off"):
            if field.is_checked() != (value == "on"):
                field.locator("xpath=..").click()
        else:
            field.fill(value)
            field.press("Tab")
    form.get_by_role("button", name="Trigger", exact=True).click()
    expect(form).to_be_hidden()


def opens_its_section(form: Locator, field: Locator) -> None:
    """Airflow's form has one section open at a time."""
    sections = form.locator("[data-part=item-trigger]")
    expect(sections.first).to_be_visible()
    for section in sections.all():
        with suppress(TimeoutError):
            return field.locator("xpath=..").wait_for(timeout=2_000)
        section.click()
    raise AssertionError(f"no section has {field}")


def test_without_a_login_there_is_nothing(person: Person) -> None:
    answer = person.page.goto(f"{person.up.address}/pdi2/")
    assert answer is not None
    assert answer.status == 401
    assert person.page.locator("body").inner_text() == '{"detail":"Not authenticated"}'

    person.page.goto(f"{person.up.address}/plugin/migration")
    expect(person.page.get_by_role("button", name="Sign in")).to_be_visible()


def test_a_dry_run_shows_its_plan_on_the_page_and_on_its_own_tab(person: Person) -> None:
    person.logs_in("admin")
    migration = person.opens_the_migration()
    phase = migration.get_by_role("heading", level=1)
    expect(phase).to_have_text("No migration has begun")
    expect(migration.get_by_role("region", name="Safe or not")).to_contain_text("the migration has changed nothing")
    assert person.barriers() == []

    migration.get_by_role("link", name="Trigger the DAG").click()
    person.page.wait_for_url(f"**/dags/{FILL}")
    trigger(person, dry_run="on")
    migration = person.opens_the_migration()
    plan = migration.get_by_role("region", name="The plan")
    expect(plan).to_contain_text("rows to copy", timeout=AIRFLOW_WORKS)
    expect(phase).to_have_text("No migration has changed anything yet")
    assert person.barriers() == []

    migration.get_by_role("region", name="A run without a report").get_by_role("link", name="Open the run").click()
    person.page.get_by_role("link", name="Migration").last.click()
    person.page.wait_for_url("**/runs/**/plugin/migration-of-run")
    expect(phase).to_have_text("This run changed nothing", timeout=AIRFLOW_WORKS)
    expect(plan).to_contain_text("rows to copy")


def test_an_operator_migrates_and_rolls_back(person: Person) -> None:
    person.logs_in("admin")
    migration = person.opens_the_migration()
    phase = migration.get_by_role("heading", level=1)
    first = migration.get_by_role("region", name="Safe or not")
    migration.get_by_role("link", name="Trigger the DAG").click()
    person.page.wait_for_url(f"**/dags/{FILL}")
    trigger(person, settle_seconds="12", read_cache_seconds="10", stop_old_writes="off", require_approval="on")

    migration = person.opens_the_migration()
    migration.get_by_role("button", name="Pause after the current slices").click(timeout=AIRFLOW_WORKS)
    expect(migration.get_by_text("Paused by admin since")).to_be_visible()
    expect(migration.get_by_role("button", name="Resume")).to_be_focused()
    expect(migration.get_by_role("listitem").filter(has_text="Dual writes proven").locator("time")).to_be_visible(
        timeout=AIRFLOW_WORKS
    )
    expect(migration.get_by_role("listitem").filter(has_text="Dual writes proven")).to_contain_text("took ")
    expect(phase).to_have_text("Copying and verifying teams", timeout=AIRFLOW_WORKS)
    expect(first).to_contain_text("Nothing is irreversible: this run leaves both tables written.")
    assert person.barriers() == []
    bar = migration.get_by_role("progressbar", name="Rows copied")
    assert bar.evaluate("bar => bar.value") < 1
    migration.get_by_role("button", name="Resume").click()
    expect(migration.get_by_text("Paused by admin since")).to_have_count(0)

    expect(phase).to_have_text("Waiting for approval of the switch", timeout=AIRFLOW_WORKS)
    assert bar.evaluate("bar => bar.value") == 1
    assert migration.get_by_role("progressbar", name="Rows verified").evaluate("bar => bar.value") == 1
    expect(migration.get_by_role("definition").filter(has_text="the old table").first).to_be_visible()
    lag = migration.locator("#numbers dt", has_text="Replication lag").locator("+ dd")
    expect(lag).to_have_text(re.compile(r"^(under|at most|over) \d+\ss.* at \d\d:"))
    expect(migration.get_by_role("img", name="Verified: ")).to_have_accessible_name(re.compile("rows/s at the peak"))
    expect(first).to_contain_text("Approve the switch, or reject it.")
    assert person.barriers() == []
    opens_a_team(person, migration)
    sees_hostile_findings(person, migration)

    migration.get_by_role("link", name="Approve the switch").click()
    with person.page.expect_response(
        lambda response: response.url.endswith("/hitlDetails") and response.request.method == "PATCH"
    ):
        person.page.get_by_role("button", name="Approve", exact=True).click()
    loses_the_task(person, "approve")
    migration = person.opens_the_migration()
    expect(phase).to_have_text("Complete: reads are on the new table", timeout=AIRFLOW_WORKS)
    expect(migration.get_by_text("times as fast")).to_be_visible()
    expect(first).to_contain_text("a rollback is possible and nothing is irreversible")
    assert person.barriers() == []

    migration.get_by_role("link", name="Roll back").click()
    person.page.wait_for_url(f"**/dags/{ROLLBACK}")
    trigger(person)
    person.opens_the_migration()
    expect(phase).to_have_text("Rolled back: reads are on the old table", timeout=AIRFLOW_WORKS)


def loses_the_task(person: Person, task_id: str) -> None:
    """Airflow does this if it learns only after the answer that the asking process has ended. A new try starts over."""
    run_id = person.page.url.partition("/runs/")[2].partition("/")[0]
    cleared = person.page.request.post(
        f"{person.up.address}/api/v2/dags/{FILL}/clearTaskInstances",
        data={"dry_run": False, "dag_run_id": unquote(run_id), "task_ids": [task_id], "only_failed": False},
    )
    assert cleared.json()["total_entries"] == 1, cleared.text()


def opens_a_team(person: Person, migration: object) -> None:
    """Uses only the keyboard."""
    button = migration.get_by_role("button", name=f"Team {TEAM}, details")  # type: ignore[attr-defined]
    button.press("Enter")
    team = migration.get_by_role("dialog", name=f"Team {TEAM}")  # type: ignore[attr-defined]
    expect(team.get_by_text("verified", exact=True)).to_be_visible()
    expect(team.get_by_text(f"Findings ({len(HOSTILE)})")).to_be_visible()
    expect(team.get_by_role("link", name=f"Log of copy, team {TEAM}")).to_be_visible()
    team.press("Escape")
    expect(team).to_be_hidden()
    expect(button).to_be_focused()


def sees_hostile_findings(person: Person, migration: object) -> None:
    findings = migration.get_by_role("region", name="Ids on which")  # type: ignore[attr-defined]
    migration.get_by_role("search", name="Findings").get_by_label("Team").fill(str(TEAM))  # type: ignore[attr-defined]
    expect(findings.get_by_role("row")).to_have_count(1 + len(HOSTILE))
    for distinct_id in HOSTILE:
        shown = distinct_id.replace("\u202e", "\\u{202e}")
        expect(findings.get_by_role("rowheader", name=shown, exact=True)).to_be_visible()
    assert findings.locator("script, img").count() == 0
    for frame in person.page.frames:
        assert frame.evaluate("window.hacked") is None


def test_a_viewer_reads_and_cannot_act(person: Person) -> None:
    person.logs_in("viewer")
    migration = person.opens_the_migration()

    expect(migration.get_by_role("heading", level=1)).to_have_text("Rolled back: reads are on the old table")
    expect(migration.get_by_role("button", name=f"Team {TEAM}, details")).to_be_visible()
    actions = migration.get_by_role("navigation", name="Acting on the migration")
    expect(actions.get_by_role("link")).to_have_text(["Open the DAG"])
    expect(actions.get_by_role("button")).to_have_count(0)
    frame = next(frame for frame in person.page.frames if frame.parent_frame)
    assert frame.evaluate("fetch('pause', {method: 'POST'}).then(answer => answer.status)") == 403


def test_axe_finds_nothing_serious_after_the_rollback_and_in_a_teams_dialog(person: Person) -> None:
    person.logs_in("admin")
    page = person.page
    page.goto(f"{person.up.address}/pdi2/")
    button = page.get_by_role("button", name=f"Team {TEAM}, details")
    expect(button).to_be_visible()
    assert axe(page) == []
    button.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert axe(page) == []

    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] == "rgb(255, 255, 255)" != grounds[1]


def test_the_page_follows_airflows_choice_of_light_and_dark(person: Person) -> None:
    person.logs_in("admin")
    person.page.evaluate("localStorage.setItem('theme', 'dark')")
    person.page.reload()
    migration = person.opens_the_migration()

    expect(migration.locator(":root")).to_have_attribute("data-theme", "dark")


def test_the_tab_of_another_dag_says_that_it_is_not_about_it(person: Person) -> None:
    person.logs_in("admin")
    person.page.goto(f"{person.up.address}/pdi2/?dag=another_dag")

    expect(person.page.get_by_role("heading", level=1)).to_have_text("This tab is about another DAG")
