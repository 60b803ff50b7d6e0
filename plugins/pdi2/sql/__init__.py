"""Every statement that the migration runs: one file each, named by what it does, in folders named like those of core.

The drivers bind values: `{name:Type}` in clickhouse/, `%(name)s` in postgres/. Only four things are put into the text,
and only here. `{name:Identifier}`: ClickHouse binds identifiers in few places. `{name:Literal}`, a long list as the
driver writes it: a bound list would become part of the request's address. `{name:Engine}` and `{name:Privilege}`: an
engine's definition from system.tables, and the name of a privilege. A rule that several statements share has its own
file, and is included with `/* include name */`.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from clickhouse_connect.driver.binding import format_query_value

INCLUDE = re.compile(r"/\* include (\w+) \*/")
PUT_IN = re.compile(r"\{(\w+):(Identifier|Literal|Engine|Privilege)\}")
SIMPLE = re.compile(r"[a-z_]\w*", re.ASCII)
PLAIN = re.compile(r"[\w:,]*", re.ASCII)
"""A text that needs no escaping. For a long text, clickhouse-connect takes longer to escape it than the statement."""


def clickhouse(name: str, parameters: Mapping[str, Any] | None = None) -> str:
    """The statement's text, with everything put in. Raises ValueError if an identifier would need quotes."""
    given = {} if parameters is None else parameters

    def text_of(found: re.Match[str]) -> str:
        value = given[found[1]]
        if found[2] == "Literal":
            if isinstance(value, str) and PLAIN.fullmatch(value):
                return f"'{value}'"
            return str(format_query_value(value))
        if found[2] == "Identifier" and not SIMPLE.fullmatch(value):
            raise ValueError(f'"{value}" would need quotes as an identifier.')
        return str(value)

    return PUT_IN.sub(text_of, _text("clickhouse", name))


def to_bind(name: str, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """The parameters that the driver must bind, because they are not put into the text."""
    put_in = {found[1] for found in PUT_IN.finditer(_text("clickhouse", name))}
    return {key: value for key, value in (parameters or {}).items() if key not in put_in}


@cache
def postgres(name: str) -> str:
    return _text("postgres", name)


@cache
def _text(folder: str, name: str) -> str:
    text = _files(folder)[f"{name}.sql"].read_text(encoding="utf-8")
    return INCLUDE.sub(lambda found: _text(folder, found[1]).strip(), text)


@cache
def _files(folder: str) -> dict[str, Traversable]:
    return {file.name: file for room in (files(__name__) / folder).iterdir() for file in room.iterdir()}
