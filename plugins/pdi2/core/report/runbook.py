"""The runbook's rows, so that the page can show the right one when something is wrong."""

import re
from functools import cache
from importlib.resources import files
from typing import Any

RUNBOOK = files("pdi2") / "runbook.md"
"""The package's copy of docs/runbook.md."""


@cache
def rows() -> list[dict[str, Any]]:
    """The cells of each row: about, meaning, safe, do."""
    found = []
    for line in RUNBOOK.read_text(encoding="utf-8").splitlines() if RUNBOOK.is_file() else []:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[1] and not set(cells[1]) <= set("-: "):
            found.append(dict(zip(("about", "meaning", "safe", "do"), cells, strict=True)))
    return found


def row_about(topic: str) -> dict[str, str] | None:
    return next((row for row in rows() if row["about"] == topic), None)


def row_of_message(text: str) -> dict[str, str] | None:
    """The row whose message comes first in the text. In a message N, M and … stand for anything."""
    found = [(hit.start(), number) for number, pattern in _messages() if (hit := pattern.search(text))]
    return rows()[min(found)[1]] if found else None


@cache
def _messages() -> list[tuple[int, re.Pattern[str]]]:
    return [
        (number, re.compile(re.sub(r"\\?\bN\b|\\?\bM\b|…", ".*?", re.escape(message)), re.DOTALL))
        for number, row in enumerate(rows())
        for message in re.findall(r"`([^`]+)`", row["about"])
    ]
