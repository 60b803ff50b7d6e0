"""`make screenshots`: the pictures of the README, taken in Chromium from a real migration on this machine."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from demo.airflow import FILL, ROOT
from demo.alone import free_port
from demo.postgres import Postgres

LOOK_EVERY_SECONDS = 0.5
LAPTOP: ViewportSize = {"width": 1366, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}


@dataclass(frozen=True)
class Up:
    """A running `make up`."""

    address: str
    directory: Path
    pid: int

    @property
    def passwords(self) -> dict[str, str]:
        return json.loads((self.directory / "airflow" / "passwords.json").read_text())

    @property
    def postgres(self) -> Postgres:
        return Postgres(str(self.directory / "postgres"))


@contextmanager
def running(place: Path, *more: str, rows: int, teams: int) -> Iterator[Up]:
    """Run `make up` in its own process, below an existing directory; stop it as Ctrl-C does."""
    port = free_port()
    directory, log = place / "everything", place / "log"
    options = ["--rows", str(rows), "--teams", str(teams), "--port", str(port), "--directory", str(directory), *more]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "demo", "up", *options],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
            # A process in the background of a shell ignores SIGINT, and its children would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        while "password" not in log.read_text():
            if process.poll() is not None:
                raise RuntimeError(f"make up did not get ready:\n{log.read_text()}")
            time.sleep(LOOK_EVERY_SECONDS)
        yield Up(f"http://127.0.0.1:{port}", directory, process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=300)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium. Containers and CI run as root, where its sandbox refuses to run, and have little /dev/shm."""
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )


def run(pictures: Path, directory: Path) -> int:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    pictures.mkdir(parents=True, exist_ok=True)
    with running(directory, rows=1_000_000, teams=40) as up, chromium() as browser:
        light, dark = (browser.new_context(viewport=LAPTOP, color_scheme=theme) for theme in ("light", "dark"))
        tokens = light.request.post(
            f"{up.address}/auth/token", data={"username": "admin", "password": up.passwords["admin"]}
        )
        token = tokens.json()["access_token"]
        for context in (light, dark):
            context.add_cookies([{"name": "_token", "value": token, "url": up.address}])
        page = light.new_page()

        conf = {"settle_seconds": 12, "read_cache_seconds": 10, "require_approval": True}
        started = light.request.post(
            f"{up.address}/api/v2/dags/{FILL}/dagRuns",
            headers={"Authorization": f"Bearer {token}"},
            data={"logical_date": None, "conf": conf},
        )
        run_id = started.json()["dag_run_id"]

        def status() -> dict[str, Any]:
            return light.request.get(f"{up.address}/pdi2/status").json()

        _wait(lambda: (status().get("teams") or {}).get("verified", 0) >= 10)
        for context, name in ((light, "migration"), (dark, "migration-dark")):
            watcher = context.new_page()
            watcher.goto(f"{up.address}/plugin/migration")
            watcher.frame_locator("iframe").get_by_role("progressbar").first.wait_for()
            _save(watcher, pictures / f"{name}.png")
        phone = light.new_page()
        phone.set_viewport_size(PHONE)
        phone.goto(f"{up.address}/pdi2/")
        phone.get_by_role("progressbar").first.wait_for()
        _save(phone, pictures / "migration-phone.png")
        _wait(lambda: status()["phase"].startswith("Waiting for approval"))
        page.goto(f"{up.address}/plugin/migration")
        teams = page.frame_locator("iframe").locator("#teams")
        teams.get_by_role("button", name="Findings").click()
        teams.locator("th[aria-sort=descending]").get_by_text("Findings").wait_for()
        time.sleep(LOOK_EVERY_SECONDS)
        teams.get_by_role("rowheader").first.get_by_role("button").click()
        page.frame_locator("iframe").get_by_role("dialog").wait_for()
        _save(page, pictures / "team.png")
        page.goto(f"{up.address}/dags/{FILL}/runs/{run_id}/tasks/approve/required_actions")
        page.get_by_role("button", name="Approve", exact=True).wait_for()
        _save(page, pictures / "approval.png")
    return 0


def _wait(done: Any) -> None:
    while not done():
        time.sleep(LOOK_EVERY_SECONDS)


def _save(page: Page, picture: Path) -> None:
    """Take a picture once nothing moves any more."""
    time.sleep(2)
    page.screenshot(path=picture)
    print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")
