"""Every statement on every engine, and the settings that it carries."""

import re
from collections import defaultdict
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from conftest import ENGINE, System
from pdi2 import sql
from pdi2.core.cluster import ours
from pdi2.core.engines.statement_settings import CONSISTENT, IN_MEMORY, spilling
from stories import ALICE

from demo.schema import Table

STATEMENTS = sorted(path.stem for path in Path(sql.__file__).parent.glob("clickhouse/*/*.sql"))
FRAGMENTS = {
    "copied_version",
    "id_hash",
    "keys",
    "moment",
    "never_merge",
    "row_name",
    "known_links",
    "link_hash",
    "slice_range",
    "step_of_source",
    "winning_row",
}
VALUES = {"Array": [], "String": "", "UUID": str(ALICE)}


@pytest.mark.parametrize("name", [name for name in STATEMENTS if name not in FRAGMENTS])
def test_the_engine_understands_every_statement(server_client: Client, name: str) -> None:
    """PDI2_ENGINE chooses the engine. Statements for replicas are run on the installed engine only."""
    text = sql.clickhouse(name, defaultdict(lambda: "a_table", engine="MergeTree ORDER BY tuple()", privilege="SELECT"))
    parameters = {parameter: VALUES.get(type_, 0) for parameter, type_ in re.findall(r"{(\w+):(\w+)", text)}
    if ENGINE == "22.12" and text.endswith("LIGHTWEIGHT\n"):
        with pytest.raises(DatabaseError, match="LIGHTWEIGHT"):  # the next test shows what is said instead
            server_client.command(text)
        return
    if name == "check_grant" and ENGINE not in (None, "25.8"):  # it is of 24.11
        with pytest.raises(DatabaseError) as refused:
            server_client.command(text)
        assert refused.value.code == ours.SYNTAX
        return
    assert server_client.command(f"EXPLAIN AST {text}", parameters)


@pytest.mark.parametrize("table", Table)
def test_a_server_is_asked_to_catch_up_in_words_that_it_knows(system: System, table: Table) -> None:
    """The server refuses because this table has no replicas, which is not a syntax error."""
    with pytest.raises(DatabaseError) as refused:
        ours._sync(system.warehouse(), table)
    assert refused.value.code not in (None, ours.SYNTAX)


@pytest.mark.parametrize("more", [{}, spilling(99)])
def test_a_statement_carries_the_settings_that_its_server_knows(system: System, more: dict[str, int]) -> None:
    sent = CONSISTENT | {"insert_quorum": "auto"} | IN_MEMORY | more
    names = ", ".join(f"'{name}'" for name in sent)
    warehouse = system.warehouse()
    warehouse.command("CREATE TABLE told (name String, value String) ENGINE = MergeTree ORDER BY name")
    warehouse.command(
        f"INSERT INTO told SELECT name, value FROM system.settings WHERE name IN ({names})", settings=more
    )

    told = dict(system.clickhouse.query("SELECT name, value FROM told").result_rows)
    assert told == {name: str(value) for name, value in sent.items() if name in told}
    late = {
        "deduplicate_insert",
        "deduplicate_insert_select",
        "max_bytes_ratio_before_external_group_by",
        "enable_adaptive_aggregator",
    }
    assert sent.keys() - told.keys() <= late
