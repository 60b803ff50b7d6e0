"""The runbook's rows, so that the page can show the right one when something is wrong."""

import re
from functools import cache
from importlib.resources import files
from typing import Any

RUNBOOK = files("pdi2") / "runbook.md"
"""The package's copy of docs/runbook.md."""


HOLE = re.compile(r"\bN\b|\bM\b|…")
"""What stands for anything in a message."""


@cache
def rows() -> list[dict[str, Any]]:
    """The cells of each row: about, meaning, safe, do."""
    return _rows_of(_text())


def row_about(topic: str) -> dict[str, str] | None:
    return next((row for row in rows() if row["about"] == topic), None)


def row_of_message(text: str) -> dict[str, str] | None:
    """The row whose message comes first in the text. In a message N, M and … stand for anything."""
    found = [(start, row) for row, parts in _messages() if (start := _start(parts, text)) >= 0]
    return min(found, key=lambda one: one[0])[1] if found else None


def _start(parts: list[str], text: str) -> int:
    """Where the message begins in the text, or -1. No pattern: an id in the text could make one take for ever."""
    start = end = -1
    for part in parts:
        if (at := text.find(part, max(end, 0))) < 0:
            return -1
        start, end = (at if start < 0 else start), at + len(part)
    return start


@cache
def _messages() -> list[tuple[dict[str, Any], list[str]]]:
    """The row of each message, and the message's words between its holes."""
    section = _text().partition("\n## Messages\n")[2].partition("\n## ")[0]
    return [
        (row, [part for part in HOLE.split(message) if part])
        for row in _rows_of(section)
        for message in re.findall(r"`([^`]+)`", row["about"])
    ]


def _rows_of(text: str) -> list[dict[str, Any]]:
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[1] and not set(cells[1]) <= set("-: "):
            found.append(dict(zip(("about", "meaning", "safe", "do"), cells, strict=True)))
    return found


def _text() -> str:
    return RUNBOOK.read_text(encoding="utf-8") if RUNBOOK.is_file() else ""
