"""Airflow's own form in Chromium sends what is typed."""

from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from .conftest import AUDIT, FILL, Person

pytestmark = pytest.mark.ui


@pytest.fixture
def form(person: Person, request: pytest.FixtureRequest) -> Locator:
    person.logs_in("admin")
    person.page.goto(f"{person.up.address}/dags/{getattr(request, 'param', FILL)}")
    person.page.get_by_role("button", name="Trigger").click()
    return person.page.get_by_role("dialog").last


def field(form: Locator, name: str) -> Locator:
    return form.locator(f"[name=element_{name}]")


def sent(person: Person, form: Locator) -> tuple[dict[str, Any], int]:
    """The run's parameters as the form sends them, and what Airflow answers."""
    with person.page.expect_response(
        lambda response: response.url.endswith("/dagRuns") and response.request.method == "POST"
    ) as answered:
        form.get_by_role("button", name="Trigger", exact=True).click()
    return answered.value.request.post_data_json["conf"], answered.value.status


def switch_on(form: Locator, name: str) -> None:
    field(form, name).locator("xpath=..").click()
    expect(field(form, name)).to_be_checked()


def test_scope_and_approval_stand_open(form: Locator) -> None:
    for name in ("team_ids", "dry_run", "require_approval", "stop_old_writes"):
        expect(field(form, name).locator("xpath=..")).to_be_visible()
    expect(field(form, "settle_seconds")).not_to_be_visible()


@pytest.mark.parametrize("typed", ["138", "2, 17", "[138]", " [2, 17] "])
def test_teams_are_sent_as_they_are_typed_whatever_else_is_edited(person: Person, form: Locator, typed: str) -> None:
    team_ids = field(form, "team_ids")
    team_ids.click()
    person.page.keyboard.type(typed, delay=20)
    switch_on(form, "dry_run")
    switch_on(form, "require_approval")

    expect(team_ids).to_have_value(typed)
    conf, status = sent(person, form)
    assert conf["team_ids"] == typed
    assert (conf["dry_run"], conf["require_approval"], conf["stop_old_writes"]) == (True, True, True)
    assert status == 200


def test_teams_that_are_typed_and_deleted_are_all_teams(person: Person, form: Locator) -> None:
    field(form, "team_ids").fill("138")
    field(form, "team_ids").fill("")
    switch_on(form, "dry_run")

    conf, status = sent(person, form)
    assert conf["team_ids"] is None
    assert status == 200


@pytest.mark.parametrize("typed", ["2,,17", "abc", "[138", " ", "[]"])
def test_what_is_no_list_of_teams_is_refused_in_the_form(person: Person, form: Locator, typed: str) -> None:
    field(form, "team_ids").press_sequentially(typed)
    switch_on(form, "dry_run")

    conf, status = sent(person, form)
    assert conf["team_ids"] == typed
    assert status == 400
    expect(form).to_be_visible()
    expect(form.get_by_text("numbers of teams, with commas between them")).to_be_visible()


@pytest.mark.parametrize("form", [AUDIT], indirect=True)
def test_the_audits_form_takes_teams_alike(person: Person, form: Locator) -> None:
    field(form, "team_ids").press_sequentially("138, 2")
    switch_on(form, "repair")

    conf, _ = sent(person, form)
    assert (conf["team_ids"], conf["repair"]) == ("138, 2", True)
