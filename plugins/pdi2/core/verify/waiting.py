"""Holds differences until the in-flight window is over, while further ids are looked at."""

from collections import deque
from collections.abc import Iterable, Iterator
from time import monotonic, sleep

from pdi2.core.verify.comparing import Difference

LISTS_HELD = 10
"""With 10,000 differences each, they take 50 MB."""


def once_old(looks: Iterable[list[Difference]], seconds: float) -> Iterator[list[Difference]]:
    """Yields each list once it is `seconds` old, so that all lists share one wait if they are found quickly."""
    held: deque[tuple[float, list[Difference]]] = deque()
    for look in looks:
        held.append((monotonic() + seconds, look))
        if len(held) == LISTS_HELD:
            yield _once_due(*held.popleft())
    while held:
        yield _once_due(*held.popleft())


def _once_due(at: float, look: list[Difference]) -> list[Difference]:
    if (early := at - monotonic()) > 0:
        sleep(early)
    return look
