"""`make up` as a person starts it, and real Chromium (Debian's) to look at it."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from demo import screenshots
from demo.screenshots import LAPTOP, Up

expect.set_options(timeout=60_000)


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with screenshots.running(tmp_path_factory.mktemp("up"), rows=8_000, teams=4) as up:
        yield up


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with screenshots.chromium() as browser:
        yield browser


class Person:
    """Somebody in front of a laptop: no other address is asked for, and nothing pops up."""

    def __init__(self, context: BrowserContext, up: Up) -> None:
        self.up = up
        self.strays: list[str] = []
        self.popups: list[str] = []
        context.route(lambda address: not address.startswith((up.address, "blob:", "data:")), self._stray)
        self.page = context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("dialog", lambda dialog: (self.popups.append(dialog.message), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.popups.append(str(error)))

    def _stray(self, route: Route) -> None:
        self.strays.append(route.request.url)
        route.abort()

    def logs_in(self, name: str) -> None:
        self.page.goto(f"{self.up.address}/")
        fields = self.page.locator("form input")
        fields.nth(0).fill(name)
        fields.nth(1).fill(self.up.passwords[name])
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url(f"{self.up.address}/")

    def opens_the_migration(self) -> Any:
        """The page within Airflow's frame."""
        self.page.get_by_test_id("nav-sidebar").get_by_role("link", name="Migration").click()
        return self.page.frame_locator("iframe")


@pytest.fixture(params=["light"])
def person(browser: Browser, up: Up, request: pytest.FixtureRequest) -> Iterator[Person]:
    context = browser.new_context(viewport=LAPTOP, color_scheme=request.param)
    person = Person(context, up)
    yield person
    context.close()
    assert person.strays == []
    assert person.popups == []


def axe(page: Page) -> list[str]:
    """What axe calls serious or critical, with the elements."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']}: {[node['html'] for node in one['nodes']]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
