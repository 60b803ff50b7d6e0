"""Every statement the migration issues, one file each, named by what it does.

Values are bound by the drivers: `{name:Type}` in clickhouse/, `%(name)s` in postgres/. Identifiers are written out in
their files, but for `{name:Identifier}`: ClickHouse binds those in few places, so they are put in here, and nowhere
else. `{name:Engine}` is an engine's definition as system.tables has it of a table that is there, which nobody binds
either. Where several statements share a rule it has a file of its own, and `/* include name */` stands for it.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

INCLUDE = re.compile(r"/\* include (\w+) \*/")
PUT_IN = re.compile(r"\{(\w+):(Identifier|Engine)\}")
SIMPLE = re.compile(r"[a-z_]\w*", re.ASCII)


def clickhouse(name: str, parameters: Mapping[str, Any] | None = None) -> str:
    """The statement, with the parameters that are identifiers. Raises ValueError where one would need quotes."""
    given = {} if parameters is None else parameters

    def put_in(found: re.Match[str]) -> str:
        if found[2] == "Identifier" and not SIMPLE.fullmatch(given[found[1]]):
            raise ValueError(f"{given[found[1]]!r} is no plain identifier.")
        return str(given[found[1]])

    return PUT_IN.sub(put_in, _text(name))


@cache
def _text(name: str) -> str:
    text = (files(__name__) / "clickhouse" / f"{name}.sql").read_text(encoding="utf-8")
    return INCLUDE.sub(lambda found: _text(found[1]).strip(), text)


@cache
def postgres(name: str) -> str:
    return (files(__name__) / "postgres" / f"{name}.sql").read_text(encoding="utf-8")
