"""`make up` as a person starts it, and real Chromium (Debian's) to look at it.

All files of this directory share one system, in the order in which make test-ui names them: a migration and its
rollback, then trouble, and at last the form, whose runs nobody waits for.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from demo import screenshots
from demo.airflow import AUDIT, FILL, ROLLBACK  # noqa: F401
from demo.screenshots import LAPTOP, Up

AIRFLOW_WORKS = 300_000
"""Milliseconds that a run may take to reach its next step on a busy machine."""

expect.set_options(timeout=60_000)


@pytest.fixture(scope="session")
def up() -> Iterator[Up]:
    """Outside pytest's own directory: another pytest on this machine would lock Postgres's user out of that one."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory,
        screenshots.running(Path(directory), rows=8_000, teams=4) as up,
    ):
        yield up


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with screenshots.chromium() as browser:
        yield browser


class Person:
    """Somebody at a laptop. The browser asks for no other address, and nothing pops up."""

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

    def barriers(self, path: str = "/pdi2/") -> list[str]:
        """What axe calls serious or critical, light and dark, on the page outside Airflow's frame, as it is now."""
        tab = self.page.context.new_page()
        tab.goto(f"{self.up.address}{path}")
        expect(tab.get_by_role("heading", level=1)).not_to_have_text("Loading")
        expect(tab.locator("#runs").get_by_role("status")).not_to_be_empty()
        found = axe(tab)
        tab.close()
        return found


@pytest.fixture(params=["light"])
def person(browser: Browser, up: Up, request: pytest.FixtureRequest) -> Iterator[Person]:
    context = browser.new_context(viewport=LAPTOP, color_scheme=request.param)
    person = Person(context, up)
    yield person
    context.close()
    assert person.strays == []
    assert person.popups == []


def axe(page: Page) -> list[str]:
    """What axe calls serious or critical, light and dark, with the elements."""
    from axe_playwright_python.sync_playwright import Axe

    found = []
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        found += [
            f"{scheme}: {one['id']}: {one['help']}: {[node['html'] for node in one['nodes']]}"
            for one in Axe().run(page).response["violations"]
            if one["impact"] in ("serious", "critical")
        ]
    return found
