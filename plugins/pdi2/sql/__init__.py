"""Every statement the migration issues, one file each, named by what it does.

Values are bound by the drivers: `{name:Type}` in clickhouse/, `%(name)s` in postgres/. No identifier is
ever put together from input: each is written out in its file.
"""

from functools import cache
from importlib.resources import files


@cache
def clickhouse(name: str) -> str:
    return (files(__name__) / "clickhouse" / f"{name}.sql").read_text(encoding="utf-8")


@cache
def postgres(name: str) -> str:
    return (files(__name__) / "postgres" / f"{name}.sql").read_text(encoding="utf-8")
