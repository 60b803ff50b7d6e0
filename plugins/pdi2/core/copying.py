"""Copies a team, a slice of its distinct_ids at a time. A finished slice is a checkpoint in the ledger.

Every statement may be run again: a copied row has a negative version that grows with the time of its event,
so it ties only with itself, and never hides what the application wrote.
"""

import logging
from dataclasses import dataclass

from clickhouse_connect.driver.exceptions import ClickHouseError

from pdi2.core.clickhouse import Execution, Warehouse
from pdi2.core.failures import MigrationError, Reaction, describe, reaction
from pdi2.core.ledger import Ledger, TeamStatus

log = logging.getLogger(__name__)

BYTES_A_ROW = 250
FEWEST_ROWS = 1_000


class CopyError(MigrationError):
    """A slice cannot be copied, or what was copied does not count up."""


@dataclass(frozen=True)
class Slice:
    """distinct_ids of a team from `lower` (included) up to `upper` (not included; None: the end)."""

    team_id: int
    lower: bytes
    upper: bytes | None

    @property
    def parameters(self) -> dict[str, object]:
        return {
            "team_id": self.team_id,
            "lower": self.lower.hex(),
            "upper": (self.upper or b"").hex(),
            "to_the_end": self.upper is None,
        }

    def __str__(self) -> str:
        upper = repr(self.upper) if self.upper is not None else "the end"
        return f"slice of team {self.team_id} from {self.lower!r} to {upper}"


def copy_team(ledger: Ledger, warehouse: Warehouse, team_id: int) -> None:
    """Copies what is not copied yet. Raises CopyError or the database's error; finished slices stay finished."""
    team = ledger.team(team_id)
    if team.status in (TeamStatus.COPIED, TeamStatus.VERIFIED):
        return
    ledger.start_copy(team_id)
    rows = min(
        team.slice_rows or warehouse.max_memory_usage // BYTES_A_ROW,
        warehouse.max_memory_usage // BYTES_A_ROW,
    )
    lower, done = ledger.checkpoint(team_id)
    while not done:
        assert lower is not None  # noqa: S101  (only the last slice has no end)
        piece = Slice(team_id, lower, _end(warehouse, team_id, lower, rows))
        try:
            rows_copied, execution = _copy(warehouse, piece)
        except ClickHouseError as error:
            if reaction(error) is not Reaction.SPLIT:
                raise
            rows = _smaller(ledger, piece, rows, error)
            continue
        ledger.finish_slice(team_id, piece.lower, piece.upper, rows_copied, execution)
        log.info("Copied %s: %s rows in %.2f s", piece, f"{rows_copied:,}", execution.seconds)
        lower, done = piece.upper, piece.upper is None
    ledger.set_copied(team_id)


def _end(warehouse: Warehouse, team_id: int, lower: bytes, rows: int) -> bytes | None:
    """The distinct_id `rows` rows on; the one after `lower` where a single id has more rows than that."""
    parameters = {"team_id": team_id, "lower": lower.hex()}
    found = warehouse.rows("slice_end", {**parameters, "rows": rows})
    if found and found[0][0] == lower:
        found = warehouse.rows("id_after", parameters)
    return found[0][0] if found else None


def _copy(warehouse: Warehouse, piece: Slice) -> tuple[int, Execution]:
    """Counts before and after: an id that is live in the source must be in the target, copied or newer."""
    (expected,) = warehouse.rows("slice_expected", piece.parameters)[0]
    execution = warehouse.execute("copy_slice", piece.parameters)
    (present,) = warehouse.rows("slice_present", piece.parameters)[0]
    if present < expected:
        raise CopyError(
            f"After the copy of the {piece}, {present:,} of its ids are in person_distinct_id2 and {expected:,} "
            "should be. Reads stay on the old table and nothing is lost. Look for errors in ClickHouse's log, then "
            "trigger the run again: this slice is copied anew."
        )
    return expected, execution


def _smaller(ledger: Ledger, piece: Slice, rows: int, error: ClickHouseError) -> int:
    """Half the rows, remembered for the team; raises CopyError where a slice cannot get smaller."""
    if rows <= FEWEST_ROWS:
        raise CopyError(
            f"The {piece} does not fit into max_memory_usage even at {rows:,} rows ({describe(error)}). Finished "
            "slices are kept, reads stay on the old table. Trigger the run again with a greater max_memory_usage."
        ) from error
    log.warning(
        "The %s met the query's memory limit (%s): halving slices to %s rows",
        piece,
        describe(error),
        rows // 2,
    )
    ledger.remember_slice_rows(piece.team_id, rows // 2)
    return rows // 2
