"""How numbers and ids are told to people."""

import json

LONGEST_ID = 80


def counted(number: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def quoted(distinct_id: bytes) -> str:
    """An id in double quotes, on one line and not too long; what is no text as backslashes."""
    text = distinct_id.decode(errors="backslashreplace")
    return json.dumps(text[:LONGEST_ID] + ("…" if len(text) > LONGEST_ID else ""), ensure_ascii=False)
