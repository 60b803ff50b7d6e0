"""The certificate, as a change ticket's reader and the person who approves the switch see it."""

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.standard.operators.hitl import ApprovalOperator
from conftest import FILL, NOTHING_TO_WAIT_FOR, ROOT, System, airflow_api
from pdi2.core.engines.failures import MigrationError
from pdi2.core.report import certificate, reporting
from pdi2.core.state.ledger import Approval, Ledger
from pdi2.core.state.ownership import claim
from pdi2.core.state.settings import Settings
from psycopg import OperationalError
from stories import dump, enable, until
from structlog.processors import format_exc_info
from structlog.testing import capture_logs

from demo.seed import Seeded, seed

HOSTILE = """</td><script>alert(1)</script><img src=x onerror="alert(2)"> {{ 7 * 7 }} ' " & \u202e""" + "x" * 400


class Page(HTMLParser):
    """A page's elements, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def ledger(system: System) -> Ledger:
    ledger = system.ledger("fill_person_distinct_id2 manual__<b>1</b>")
    ledger.create()
    with ledger.transaction():
        claim(ledger, {})
    return ledger


def draw_up(ledger: Ledger) -> tuple[dict[str, Any], str]:
    """The JSON file's content and the page."""
    drawn_up = certificate.draw_up(ledger, reporting.close_run(ledger, Settings()))
    [(json_name, text), (html_name, page)] = drawn_up.files.items()
    assert json_name.removesuffix(".json") == html_name.removesuffix(".html")
    assert drawn_up.json_sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert drawn_up.json_sha256 in page
    return json.loads(text), page


def test_hostile_data_is_shown_and_does_nothing(system: System, ledger: Ledger) -> None:
    ledger.actor = HOSTILE
    ledger.record("planned", by=HOSTILE)
    ledger.plan({7: 1})
    ledger.set_failed([7], HOSTILE)
    finding = {"team_id": 7, "distinct_id": HOSTILE, "kind": "ahead", "repaired": False}
    ledger.add_findings([{**finding, **dict.fromkeys(["old", "clickhouse", "postgres", "action", "written"])}])

    facts, html = draw_up(ledger)
    page = Page(html)

    assert "Rows copied, one per distinct_id" in page.text
    assert facts["remaining_findings"][0]["distinct_id"] == HOSTILE
    assert page.text.count(HOSTILE) == 3
    assert not {"script", "img", "b", "link", "iframe", "object", "a"} & set(page.tags)
    assert not {name for name in page.attributes if name.startswith("on")} | {"src", "href"} & page.attributes
    assert "default-src 'none'" in html, "nothing is asked for, whatever is in it"


@pytest.mark.slow
def test_ten_thousand_teams_stay_readable(system: System, ledger: Ledger) -> None:
    system.postgres.execute(
        "INSERT INTO pdi2_migration.team (team_id, status, rows_source, rows_copied, digest, truth_digest, verified_at)"
        " SELECT id, 'verified', 10000 - id, 1, '1:2', '1:2', now() FROM generate_series(1, 10000) AS id"
    )

    facts, html = draw_up(ledger)

    assert [team["team_id"] for team in facts["teams"]] == list(range(1, 10_001)), "the largest first"
    assert Page(html).tags.count("tr") > 10_000
    assert len(html) < 5_000_000


def test_the_runbooks_statements_remove_an_id_of_a_person_from_the_ledger(system: System, ledger: Ledger) -> None:
    enable(system, ledger)
    ledger.plan({7: 10})
    for one in ("ann@example.com", "bob@example.com"):
        finding = {"team_id": 7, "distinct_id": one, "kind": "stale", "repaired": False}
        ledger.add_findings([{**finding, "old": None, "clickhouse": None, "postgres": None, "action": "left alone"}])
    ledger.set_failed([7], 'the ids "ann@example.com" and "bob@example.com" differ')
    ledger.record("task_failed", task="team.verify", error='the ids "ann@example.com" and "bob@example.com" differ')
    add_slice = "INSERT INTO pdi2_migration.slice VALUES (7, '', %s, 1, 1), (7, %s, NULL, 1, 1)"
    system.postgres.execute(add_slice, [b"ann@example.com"] * 2)
    ledger.keep_certificate(certificate.draw_up(ledger, reporting.close_run(ledger, Settings())).files)
    section = (ROOT / "docs" / "runbook.md").read_text().partition("## Removing a person's ids")[2]
    statements = section.partition("```sql\n")[2].partition("```")[0]
    assert "ann@example.com" in str(dump(system))

    system.postgres.execute(statements.replace("THE ID", "ann@example.com").encode())

    left = str(dump(system))
    assert "ann@example.com" not in left
    assert "bob@example.com" in left
    assert system.value("SELECT count(*) FROM pdi2_migration.slice") == 0


def test_nobody_approves_what_was_not_certified(ledger: Ledger) -> None:
    with pytest.raises(MigrationError, match=r"nothing to approve.*Clear the task certify"):
        certificate.for_approval(ledger, Settings())


def test_the_ledger_of_an_earlier_version_gets_what_it_lacks(system: System, ledger: Ledger) -> None:
    ledger.plan({7: 1})
    system.postgres.execute("ALTER TABLE pdi2_migration.team DROP COLUMN digest, DROP COLUMN truth_digest")

    ledger.create()

    facts, _ = draw_up(ledger)
    assert [(team["team_id"], team["digest"]) for team in facts["teams"]] == [(7, None)]


@pytest.mark.parametrize("scheme", ["file://", "local://", ""])
def test_nobody_else_on_the_machine_reads_a_certificate(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    from pdi2.edge import ending

    monkeypatch.setenv("AIRFLOW__PDI2__CERTIFICATES", f"{scheme}{tmp_path}/tickets")

    ending._write_certificate(ledger, reporting.close_run(ledger, Settings()))

    assert [file.stat().st_mode & 0o777 for file in (tmp_path / "tickets").iterdir()] == [0o600, 0o600]


@pytest.mark.slow
@pytest.mark.usefixtures("airflow_metadata")
class TestRuns:
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("AIRFLOW__PDI2__CERTIFICATES", f"file://{tmp_path}/tickets")
        return tmp_path / "tickets"

    @pytest.fixture
    def seeded(self, system: System) -> Seeded:
        return seed(system.postgres, system.clickhouse, rows=7_000, teams=3, reused_ids=True)

    def test_a_run_leaves_a_page_and_the_same_facts_as_json_and_in_the_ledger(
        self, system: System, seeded: Seeded, place: Path
    ) -> None:
        run = system.run(stop_old_writes=False)

        assert run.state == "success"
        [html, text] = sorted(place.iterdir())
        assert (html.suffix, text.suffix) == (".html", ".json")
        assert [file.stat().st_mode & 0o777 for file in (html, text)] == [0o600, 0o600]
        written = system.ledger().latest("certificate_written")
        assert written["files"] == [text.name, html.name]
        assert written["json_sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
        facts = json.loads(text.read_text())
        assert facts["report"] == system.ledger().latest("report")
        assert facts["run"]["airflow_run"] == f"{FILL} {run.run_id}"
        assert facts["settings"] == {**asdict(Settings()), **NOTHING_TO_WAIT_FOR, "stop_old_writes": False}
        assert {team["team_id"]: team["rows_copied"] for team in facts["teams"]} == {
            team_id: team.rows_copied for team_id, team in system.teams().items()
        }
        assert facts["report"]["findings"]["ahead"]["repaired"] > 0
        assert facts["remaining_findings"] == []
        assert facts["report"]["tombstones"] > 0
        ids = "SELECT team_id, count(*) FROM posthog_persondistinctid GROUP BY team_id"
        counted = {team["team_id"]: int(team["truth_digest"].partition(":")[0]) for team in facts["teams"]}
        assert counted == dict(system.postgres.execute(ids).fetchall())
        assert all(team["digest"] == team["truth_digest"] for team in facts["teams"])
        assert "reads_switched" in [event["what"] for event in facts["milestones"]]
        page = Page(html.read_text())
        assert "3 of 3 teams are verified against Postgres." in " ".join(page.text.split())
        assert "Reads are on the new table." in page.text

    def test_a_place_that_cannot_be_written_is_reported_and_stops_nothing(
        self, system: System, seeded: Seeded, place: Path
    ) -> None:
        place.write_text("a file is where the folder should be")
        with capture_logs(processors=[format_exc_info]) as entries:
            run = system.run()

        assert run.state == "failed", "a red task is not hidden"
        assert system.status() == 2, "the migration is complete"
        assert run.get_task_instance("report").state == "failed"
        [told] = [entry["exception"] for entry in entries if "certificate could not" in entry.get("exception", "")]
        assert f"file://{place}" in told
        assert "clear this task" in told
        assert "clear this task" in system.ledger().latest("task_failed")["error"], "the page says it too"

    @pytest.mark.parametrize(
        ("answer", "outcome", "reads"), [("Approve", "completed", "new"), ("Reject", "rejected", "old")]
    )
    def test_a_person_sees_what_was_compared_and_decides(
        self, system: System, seeded: Seeded, place: Path, answer: str, outcome: str, reads: str
    ) -> None:
        with answered(system, lambda: answer) as asked:
            run = system.run(require_approval=True)

        [body] = asked
        assert "| Teams verified | 3 of 3 |" in body
        rows = sum(team.rows_source for team in system.teams().values())
        assert f"| Rows in the old table | {rows:,} |" in body
        assert "| Differences found: ahead | " in body
        assert "and agrees." in body
        assert run.state == "success"
        assert system.switches()["reads"] == reads
        assert system.ledger().current_run().outcome == outcome
        [text] = place.glob("*.json")
        decisions = [event for event in json.loads(text.read_text())["milestones"] if "switch_" in event["what"]]
        assert [event["detail"]["by"] for event in decisions] == ["alice"]
        if answer == "Reject":
            assert system.status() == 3
            told = system.value("SELECT description FROM posthog_asyncmigrationerror")
            assert told.startswith("alice rejected the switch.")
            copied = system.value("SELECT max(finished_at) FROM pdi2_migration.slice")
            assert system.run().state == "success"
            assert system.status() == 2
            assert system.value("SELECT max(finished_at) FROM pdi2_migration.slice") == copied

    def test_whoever_approved_is_not_asked_again_where_airflow_tries_again(
        self, system: System, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        complete = ApprovalOperator.execute_complete

        def lost_once(*arguments: Any) -> Any:
            monkeypatch.setattr(ApprovalOperator, "execute_complete", complete)
            raise OperationalError("the server closed the connection")

        monkeypatch.setattr("pdi2.edge.retries.FIRST_DELAY", timedelta(seconds=0.5))
        monkeypatch.setattr(ApprovalOperator, "execute_complete", lost_once)
        with answered(system, lambda: "Approve") as asked:
            run = system.run(require_approval=True)

        assert len(asked) == 1
        assert run.state == "success"
        assert run.get_task_instance("approve").try_number == 2
        assert system.switches()["reads"] == "new"


def test_an_approval_is_of_one_certificate_and_one_switch(ledger: Ledger) -> None:
    assert ledger.approval() == Approval("", None)
    for what in ("certified", "approval_asked", "switch_rejected", "reads_switched", "rolled_back"):
        ledger.record(what)
        assert ledger.approval() == Approval(what, None)
        ledger.record("switch_approved", by="bob")
        ledger.record("dual_writes_watched")
        assert ledger.approval() == Approval("switch_approved", "bob")


class answered:
    """Within this block, a person answers the approval through Airflow's API. Yields what that person was shown."""

    def __init__(self, system: System, decide: Callable[[], str]) -> None:
        self.asked: list[str] = []
        self.thread = threading.Thread(target=self._answer, args=(decide,))

    def __enter__(self) -> list[str]:
        self.thread.start()
        return self.asked

    def __exit__(self, *_: Any) -> None:
        self.thread.join()

    def _answer(self, decide: Callable[[], str]) -> None:
        client = airflow_api()

        def waiting() -> list[dict[str, Any]]:
            asked = client.get("/api/v2/dags/~/dagRuns/~/hitlDetails", params={"state": "awaiting_input"})
            return asked.json()["hitl_details"] if asked.is_success else []

        [detail] = until(waiting, every=0.5)
        self.asked.append(detail["body"])
        run = detail["task_instance"]["dag_run_id"]
        address = f"/api/v2/dags/{FILL}/dagRuns/{run}/taskInstances/approve/-1/hitlDetails"
        answer = {"chosen_options": [decide()], "params_input": {}}
        until(lambda: client.patch(address, json=answer).is_success)  # again while Airflow's SQLite is locked
