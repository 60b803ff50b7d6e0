"""Holds differences until the in-flight window is over, while further ids are looked at."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from time import monotonic, sleep

from pdi2.core.cluster.pressure import TELL_EVERY_SECONDS
from pdi2.core.verify.comparing import Difference

log = logging.getLogger(__name__)

LISTS_HELD = 10
"""With 10,000 differences each, they take 50 MB."""


def once_old(looks: Iterable[list[Difference]], seconds: float) -> Iterator[list[Difference]]:
    """Yields each list once it is `seconds` old, so that all lists share one wait if they are found quickly."""
    held: deque[tuple[float, list[Difference]]] = deque()
    found, tell_at = 0, monotonic() + TELL_EVERY_SECONDS
    for look in looks:
        held.append((monotonic() + seconds, look))
        found += len(look)
        if monotonic() > tell_at:
            log.info("Ids that differ so far, and are looked at once more: %s", f"{found:,}")
            tell_at = monotonic() + TELL_EVERY_SECONDS
        if len(held) == LISTS_HELD:
            yield _once_due(*held.popleft())
    while held:
        yield _once_due(*held.popleft())


def _once_due(at: float, look: list[Difference]) -> list[Difference]:
    while (early := at - monotonic()) > 0:
        log.info("In %.0f s the ids that differ are looked at once more: until then they may be in flight", early)
        sleep(min(early, TELL_EVERY_SECONDS))
    return look
