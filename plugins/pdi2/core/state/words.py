"""How numbers and ids are written for people."""

import json

from pdi2.core.engines.failures import visible

LONGEST_ID = 80


def counted(number: float, one: str, many: str = "") -> str:
    """`1 row`, `2,000 rows`. `many` is needed if the plural is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def are(number: int) -> str:
    """`1 of 2 teams is`, `2 of 2 teams are`."""
    return "is" if number == 1 else "are"


def quoted(distinct_id: bytes) -> str:
    """An id in double quotes, on one line and not too long, with backslash escapes for what is not visible text."""
    text = distinct_id.decode(errors="backslashreplace")
    return visible(json.dumps(text[:LONGEST_ID] + ("…" if len(text) > LONGEST_ID else ""), ensure_ascii=False))
