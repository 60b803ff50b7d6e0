"""Compares our part of the test equipment for replicas with what ClickHouse writes and reads."""

from pathlib import Path
from typing import Any

import pytest
from conftest import ReplicatedSystem

from demo import cluster_engine
from demo.cluster_exchange import checksums
from demo.cluster_hash import file_hash
from demo.schema import Table


@pytest.mark.parametrize("settings", ["min_bytes_for_wide_part = 1", "min_bytes_for_wide_part = 1000000000"])
def test_hashes_are_those_that_clickhouse_keeps_of_every_file(replicated: ReplicatedSystem, settings: str) -> None:
    replicated.clickhouse.command(f"ALTER TABLE {Table.NEW} MODIFY SETTING {settings}, min_rows_for_wide_part = 1")
    replicated.clickhouse.command(
        f"INSERT INTO {Table.NEW} (team_id, distinct_id, _offset) SELECT 7, hex(number), number * 7 FROM numbers(3000)"
    )
    only_part = f"SELECT path FROM system.parts WHERE active AND database = currentDatabase() AND table = '{Table.NEW}'"
    part = Path(str(replicated.clickhouse.command(only_part)))
    listed = checksums((part / "checksums.txt").read_bytes())
    sizes = {name: size for name, (size, _) in listed.items()}
    assert min(sizes.values()) < 16
    assert max(sizes.values()) > 10_000, "of several blocks"
    for name, (size, digest) in listed.items():
        data = (part / name).read_bytes()
        assert (len(data), file_hash(data)) == (size, digest), name


def test_the_other_replicas_fetch_parts_of_both_kinds_and_what_a_delete_made_of_them(
    replicated: ReplicatedSystem,
) -> None:
    first, *others = replicated.replicas
    for number, wide in enumerate((1, 1_000_000_000)):
        first.command(f"ALTER TABLE {Table.NEW} MODIFY SETTING min_bytes_for_wide_part = {wide}")
        first.command(
            f"INSERT INTO {Table.NEW} (team_id, distinct_id) SELECT {number}, hex(number) FROM numbers(1000)",
            settings={"insert_quorum": 3},
        )
    first.command(f"DELETE FROM {Table.NEW} WHERE distinct_id = '01'", settings={"lightweight_deletes_sync": 2})
    rows = f"SELECT team_id, count() FROM {Table.NEW} GROUP BY team_id ORDER BY team_id"
    for client in others:
        assert client.query(rows).result_rows == [(0, 999), (1, 999)]


def test_a_replica_refuses_and_delays_fetches_on_request(replicated: ReplicatedSystem) -> None:
    first, second, _ = replicated.replicas
    insert: dict[str, Any] = {"insert_quorum": 2, "insert_quorum_timeout": 500}
    replicated.server.exchange(refuse=True)
    with pytest.raises(Exception, match="UNKNOWN_STATUS_OF_INSERT"):
        first.command(f"INSERT INTO {Table.NEW} (team_id) VALUES (1)", settings=insert)
    assert second.query(f"SELECT count() FROM {Table.NEW}").result_rows == [(0,)]
    replicated.server.exchange(refuse=False)
    second.command(f"SYSTEM SYNC REPLICA {Table.NEW}")
    assert second.query(f"SELECT count() FROM {Table.NEW}").result_rows == [(1,)]


def test_a_build_that_was_never_tried_is_reported_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_engine, "KNOWN", {"1.0": 0})
    with pytest.raises(cluster_engine.UnknownEngineError, match=r"was never tried as a replica \(1.0 were\): run make"):
        cluster_engine.prepare("127.0.0.1", 1)
