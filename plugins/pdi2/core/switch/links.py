"""Links: what reached the tables in a window of time, and which of it the new table lacks."""

import math
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pdi2.core.engines.clickhouse import Warehouse
from pdi2.core.state.ledger import Ledger
from pdi2.core.state.words import counted, quoted
from pdi2.core.verify.comparing import text_of, truths

EXAMPLES = 5
MOST_MISSES = 10_000
MOST_LINKS = 100_000
"""If a window has more than MOST_LINKS, the links of a sample of ids are looked at: 150,000 did not always fit into the
default memory."""


class Miss(NamedTuple):
    """A link that the new table does not show."""

    one_of: int
    """Of how many ids one was looked at."""
    team_id: int
    distinct_id: bytes
    written_at: int
    """Seconds since the epoch."""
    event: int
    """A hash of the link."""
    version: int | None
    """The greatest version of the id in the new table; None if the new table does not have the id."""
    total: int
    """How many misses there are among the ids that were looked at."""


class Window(NamedTuple):
    """A time during which links were written, after `start` and up to `end`, in seconds since the epoch."""

    start: int
    end: int
    known: list[str]
    """Hashes of links from before the dual write, which show nothing about it."""

    @property
    def parameters(self) -> dict[str, Any]:
        return {"window_start": self.start, "window_end": self.end, "known": ",".join(self.known)}

    def links(self, warehouse: Warehouse) -> int:
        """How many links reached the old table."""
        count: int = warehouse.rows("dual_writes_seen", self.parameters)[0][0]
        return count

    def misses(self, warehouse: Warehouse, one_of: int) -> list[Miss]:
        """The newest links that the new table lacks, from one id in `one_of`."""
        chosen = {**self.parameters, "one_of": one_of, "most": MOST_MISSES}
        return [Miss(one_of, *row) for row in warehouse.rows("missed_dual_writes", chosen)]


def one_of(links: int) -> int:
    """Of how many ids one is looked at. A shorter window instead could miss a burst, and take what is left for idle."""
    return math.ceil(links / MOST_LINKS) or 1


def sampled(one_of: int) -> str:
    return f" (one id in {one_of:,} was looked at)" if one_of > 1 else ""


def blamed(ledger: Ledger, misses: list[Miss]) -> list[Miss]:
    """The misses that a writer is to blame for.

    PostHog 1.31 to 1.33 delete an id without a tombstone, and an id that comes back starts again at version 0. Its new
    row is written, but a merge drops it in favour of an old row whose version is no smaller.
    """
    truth = truths(ledger.connection, ((miss.team_id, miss.distinct_id) for miss in misses if miss.version is not None))
    swallowed = {
        miss
        for miss in misses
        if miss.version is not None and text_of(miss.distinct_id) is not None
        if (row := truth.get((miss.team_id, miss.distinct_id))) is None or row.version <= miss.version
    }
    return [miss._replace(total=miss.total - len(swallowed)) for miss in misses if miss not in swallowed]


def counts(misses: list[Miss]) -> str:
    total, one_of = misses[0].total, misses[0].one_of
    return f"{counted(total, 'link')} reached person_distinct_id and not person_distinct_id2{sampled(one_of)}"


def examples(misses: list[Miss]) -> str:
    return "; ".join(
        f"team {miss.team_id}, distinct_id {quoted(miss.distinct_id)} at {datetime.fromtimestamp(miss.written_at, UTC)}"
        for miss in misses[:EXAMPLES]
    )
