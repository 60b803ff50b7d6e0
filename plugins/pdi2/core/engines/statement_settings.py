"""The settings that each statement is sent with, besides those in exactness.py."""

from collections.abc import Mapping
from typing import Any

from pdi2.core.engines.exactness import USUAL, WHOLE, Setting, suffices

PRIORITY = 10
"""Runs after all statements of a higher priority. 1 is the highest; 0 means no priority."""
THREADS = 2
"""Threads per statement. Each thread takes memory, so the number of the server's cores must not decide how many."""
CONSISTENT = {
    "insert_quorum_timeout": 20_000,
    "insert_quorum_parallel": 1,
    "select_sequential_consistency": 0,
    "insert_deduplicate": 0,
    "deduplicate_insert": "disable",
    "deduplicate_insert_select": "disable",
    "async_insert": 0,
    "max_parallel_replicas": 1,
}
"""Together with Warehouse.quorum: an insert is acknowledged once most replicas have it, and is written even if it
repeats an earlier one; a single replica answers a SELECT. Most of this matters for replicated tables only.
docs/clusters.md gives the reason for each setting."""
LONGEST_STATEMENT = 1 << 24
"""In bytes. ClickHouse's default of 256 KB is less than the ids that go into one statement."""
IN_MEMORY = {"max_bytes_before_external_group_by": 0, "max_bytes_ratio_before_external_group_by": 0}
"""The GROUP BY of ClickHouse 26.8 and later may crash the server if it spills to disk and meets a memory limit."""
REMOVING = {"lightweight_deletes_sync": 0, "mutations_sync": 0, "lightweight_delete_mode": "alter_update"}
"""A DELETE runs as a mutation in the background. A server that does not know the first setting waits for the mutation
anyway."""


def spilling(memory: int) -> dict[str, int]:
    """Settings for a GROUP BY that spills to disk above half of `memory` bytes, by the algorithm before 26.8.

    Above two thirds of it, two threads that enlarge their hash tables at the same time could exceed `memory`.
    """
    return {"max_bytes_before_external_group_by": memory // 2, "enable_adaptive_aggregator": 0}


def sent(known: Mapping[str, Setting], more: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a statement, with `more`, as far as the server knows them.

    The settings in WHOLE are always sent, the others only if the server's own value would not do.
    """
    chosen = {
        **WHOLE,
        **USUAL,
        **CONSISTENT,
        **IN_MEMORY,
        "priority": PRIORITY,
        "max_threads": THREADS,
        "max_query_size": LONGEST_STATEMENT,
        **more,
    }
    return {
        name: value
        for name, value in chosen.items()
        if name in known and (name in WHOLE or not suffices(name, known[name], value))
    }
