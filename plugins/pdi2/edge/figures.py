"""What tasks report about their work, in their log and as XCom, so that Airflow's own page shows it for each team."""

from collections.abc import Sequence
from typing import Any

import pendulum

from pdi2.core.state.ledger import Ledger, TeamStatus
from pdi2.core.state.words import counted
from pdi2.core.switch import dual_writes


def of_dual_writes(ledger: Ledger) -> dict[str, Any]:
    """`since`: when the dual write was turned on, by ClickHouse's clock; `writes_before`: the switch before that."""
    enabled = ledger.latest(dual_writes.ENABLED) or {}
    return {
        "since": pendulum.from_timestamp(enabled["enabled_at"]).isoformat(),
        "writes_before": enabled["writes_before"] or "follows the migration row alone",
    }


def of_plan(ledger: Ledger, batches: Sequence[Sequence[int]]) -> str:
    """The plan in one sentence."""
    teams = ledger.teams([team_id for batch in batches for team_id in batch])
    if not teams:
        return "No team is left to copy: every one of them is verified already."
    largest = max(teams, key=lambda team: team.rows_source)
    return (
        f"Planned {counted(len(teams), 'team')} with {counted(sum(team.rows_source for team in teams), 'row')} in "
        f"{counted(len(batches), 'task')}, the largest first: team {largest.team_id} with "
        f"{counted(largest.rows_source, 'row')}."
    )


def of_copy(ledger: Ledger, team_ids: Sequence[int]) -> dict[str, Any]:
    """Rows in the old table, rows copied, slices, seconds in ClickHouse, and peak memory in MB (None: not measured)."""
    teams = ledger.teams(team_ids)
    peaks = [team.peak_memory for team in teams if team.peak_memory]
    return {
        "teams": len(teams),
        "rows_source": sum(team.rows_source for team in teams),
        "rows_copied": sum(team.rows_copied for team in teams),
        "slices": sum(team.slices_done for team in teams),
        "seconds": round(float(sum(team.copy_seconds for team in teams)), 2),
        "peak_memory_mb": round(max(peaks) / 1e6) if peaks else None,
    }


def of_verification(ledger: Ledger, team_ids: Sequence[int]) -> dict[str, Any]:
    """How many teams there are and are verified, and by kind how many findings are repaired and how many remain."""
    teams = ledger.teams(team_ids)
    return {
        "teams": len(teams),
        "verified": sum(team.status == TeamStatus.VERIFIED for team in teams),
        "findings": ledger.findings_by_kind(team_ids),
    }
