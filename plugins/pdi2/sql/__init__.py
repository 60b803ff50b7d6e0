"""Every statement the migration issues, one file each, named by what it does.

Values are bound by the drivers: `{name:Type}` in clickhouse/, `%(name)s` in postgres/. No identifier is
ever put together from input: each is written out in its file. Where several statements share a rule it has a file
of its own, and `/* include name */` stands for it.
"""

import re
from functools import cache
from importlib.resources import files

INCLUDE = re.compile(r"/\* include (\w+) \*/")


@cache
def clickhouse(name: str) -> str:
    text = (files(__name__) / "clickhouse" / f"{name}.sql").read_text(encoding="utf-8")
    return INCLUDE.sub(lambda found: clickhouse(found[1]).strip(), text)


@cache
def postgres(name: str) -> str:
    return (files(__name__) / "postgres" / f"{name}.sql").read_text(encoding="utf-8")
