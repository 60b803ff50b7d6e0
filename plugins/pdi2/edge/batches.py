"""What a mapped task does with its batch of teams: many of them together, and the others one by one."""

import json
import logging
from collections.abc import Callable
from typing import Any

from pdi2.core.cluster.pressure import wait_while_paused
from pdi2.core.engines.failures import describe, waits
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.ownership import alone_with
from pdi2.core.state.slices import named
from pdi2.edge.compat import AirflowRescheduleException
from pdi2.edge.connections import Workbench, open_ledger, opened, put_off
from pdi2.edge.retries import raise_together

log = logging.getLogger(__name__)


def logged(of: Callable[[Ledger, list[int]], dict[str, Any]], batch: dict[str, Any]) -> dict[str, Any]:
    with open_ledger() as ledger:
        done = of(ledger, batch["team_ids"])
    log.info("%s: %s", batch["label"], json.dumps(done))
    return done


def each_team(
    batch: dict[str, Any],
    purpose: str,
    together: Callable[[Workbench, list[int]], list[int]],
    alone: Callable[[Workbench, int], object],
) -> None:
    """Does as many teams as possible together, and the others one by one. A team that fails does not stop the others.

    If some teams must wait, the task is put off, but only if no team failed.
    """
    failures: list[Exception] = []
    waiting = False

    def work(team_ids: list[int]) -> list[int]:
        nonlocal waiting
        try:
            # The batch's first team stands for all of them: a lock for each could use up Postgres's.
            mine = {batch["team_ids"][0], team_ids[0]}
            with opened(f"{purpose} {named(team_ids)}") as bench, alone_with(bench.ledger, mine):
                if len(team_ids) > 1:
                    return together(bench, team_ids)
                _with_team(bench, team_ids[0], alone)
        except AirflowRescheduleException:
            waiting = True
        except Exception as error:
            failures.append(error)
        return []

    left = batch["team_ids"]
    for team_id in work(left) if len(left) > 1 else left:
        work([team_id])
    raise_together(failures)
    if waiting:
        raise put_off()


def _with_team(bench: Workbench, team_id: int, work: Callable[[Workbench, int], object]) -> None:
    try:
        wait_while_paused(bench.ledger, [team_id])
        work(bench, team_id)
    except Exception as error:
        if not bench.ledger.connection.closed and not waits(error):
            bench.ledger.set_failed([team_id], describe(error))
        raise
