"""The certificate: what was done and compared, team by team, as JSON and as a page to attach to a change ticket.

Both come from the ledger alone and are self-contained: the page loads nothing from anywhere.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jinja2
from psycopg.rows import dict_row

import pdi2
from pdi2.core.engines import postgres
from pdi2.core.engines.failures import MigrationError
from pdi2.core.report.reporting import ELSEWHERE
from pdi2.core.report.telling import MILESTONES, by_kind, row, sentence, setting
from pdi2.core.report.way_back import way_back
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.settings import Settings
from pdi2.core.state.switches import NAME
from pdi2.core.state.words import are, counted

PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("pdi2.core.report", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)
PAGES.filters |= {"by_kind": by_kind, "row": row, "setting": setting}
PAGES.globals |= {"are": are, "counted": counted, "elsewhere": ELSEWHERE}
MOST_FINDINGS = 1_000


@dataclass(frozen=True)
class Certificate:
    """Texts by file name. The page shows the JSON file's SHA-256, so a change to only one of them would be noticed."""

    files: dict[str, str]
    json_sha256: str


def draw_up(ledger: Ledger, report: dict[str, Any]) -> Certificate:
    """`report` is what close_run returned."""
    facts = _collect(ledger, report)
    name = f"person_distinct_id2-run-{facts['run']['number']}-{facts['started_at'][:10]}-{report['outcome']}"
    name = name.replace(" ", "-")
    text = json.dumps(facts, indent=1)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    told = [(event, sentence(event["what"], event["detail"])[0]) for event in facts["milestones"]]
    page = PAGES.get_template("certificate.html").render(facts, told=told, json_name=f"{name}.json", sha256=sha256)
    return Certificate({f"{name}.json": text, f"{name}.html": page}, sha256)


def _collect(ledger: Ledger, report: dict[str, Any]) -> dict[str, Any]:
    run = ledger.current_run()
    assert run is not None  # noqa: S101  (there is no report without a run)

    def listed(statement: str, **parameters: Any) -> list[dict[str, Any]]:
        return postgres.execute(ledger.connection, statement, parameters, dict_row).fetchall()

    facts = {
        "format": 1,
        "migration": NAME,
        "version": pdi2.__version__,
        "run": {"number": run.id, "airflow_run": run.airflow_run, "actor": run.actor},
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "settings": run.settings,
        "report": report,
        "replicas": _replicas(ledger),
        "read_times": ledger.latest_of_run("read_times"),
        "milestones": listed("certificate_events", milestones=MILESTONES),
        "teams": listed("certificate_teams"),
        "remaining_findings": listed("certificate_findings", most=MOST_FINDINGS),
    }
    told: dict[str, Any] = json.loads(json.dumps(facts, default=_utc))
    return told


def _replicas(ledger: Ledger) -> dict[str, Any] | None:
    """The replica that was compared, and what each replica had at the switch or, before the switch, at certify."""
    if not (connected := ledger.latest("connected_to")) or not connected["replica"]:
        return None
    last = ledger.latest_of_run("reads_switched") or ledger.latest_of_run("certified") or {}
    return {"compared_on": connected["replica"], "each": each_replica(last)}


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds")


def each_replica(looked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The replicas that certify or the switch looked at, each with what it has of the new table in words."""
    return [replica | {"has": _has(replica)} for replica in looked.get("replicas", [])]


def _has(replica: Mapping[str, Any]) -> str:
    if replica["here"]:
        return "compared with Postgres"
    state = "" if replica["active"] else "away, "
    if replica["lacks"] is None:
        return f"{state}what it lacks is not known"
    return f"{state}lacks {counted(replica['lacks'], 'part')}" if replica["lacks"] else f"{state}has everything"


def for_approval(ledger: Ledger, settings: Settings) -> str:
    """What a person approves, in Markdown. It contains numbers but no ids, because an id may contain hostile text."""
    certificate = ledger.latest_of_run("certified")
    if certificate is None:
        raise MigrationError(
            "Nothing was certified in this run, so there is nothing to approve, and reads stay on the old table. "
            "Clear the task certify: it looks again."
        )
    counts = by_kind(certificate["findings"]).items()
    findings = "".join(f"| Differences found: {kind} | {count} |\n" for kind, count in counts)
    left = sum(count["remaining"] for count in certificate["findings"].values())
    open_ = f", but for {counted(left, 'open finding')}: see the migration page" if left else ""
    old_differs = sum(team.old_differs or 0 for team in ledger.teams())
    text = (
        "Every id of every team was compared with Postgres as a reader of the new table sees it, and agrees"
        f"{open_}.\n\n"
        "| | |\n|---|---|\n"
        f"| Teams verified | {certificate['teams']:,} of {certificate['teams']:,} |\n"
        f"| Rows in the old table | {certificate['rows_source']:,} |\n"
        f"| Rows copied, one per distinct_id | {certificate['rows_copied']:,} |\n"
        f"{findings or '| Differences found | none |' + chr(10)}"
        f"| Ids the old table's reader gets wrong | about {old_differs:,} |\n"
    )
    for replica in each_replica(certificate):
        text += f"| Replica {replica['name']} | {replica['has']} |\n"
    if times := ledger.latest_of_run("read_times"):
        text += (
            f"| The application's read, team {times['team_id']}, {counted(times['ids'], 'id')} | "
            f"{times['read_old'] * 1000:,.0f} ms old, {times['read_new'] * 1000:,.0f} ms new |\n"
        )
    back = way_back(ledger, settings.stop_old_writes, settings.read_cache_seconds)
    return (
        f"{text}\n**Approve** switches reads to the new table. **{back.text}**\n\n**Reject** leaves reads on the old "
        "table and ends the run; what is verified is kept, and a new run asks again."
    )
