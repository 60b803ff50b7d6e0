"""What verify found, as the ledger keeps it: what each side said about an id, what was done, and the row written."""

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from pdi2.core.state.ledger import Ledger
from pdi2.core.verify.comparing import Difference, Key, Seen, text_of
from pdi2.core.verify.repairing import has_to_go, row_of


def record(
    ledger: Ledger, found: Iterable[Difference], old: Mapping[Key, UUID], touched: set[Key], repaired: set[Key]
) -> None:
    """Records findings. `old` has the old table's answers; `touched` are the ids that a repair was tried for."""
    ledger.add_findings([_line(one, old.get(one.key), one.key in touched, one.key in repaired) for one in found])


def _line(one: Difference, old: UUID | None, touched: bool, repaired: bool) -> dict[str, Any]:
    return {
        "team_id": one.team_id,
        "distinct_id": readable(one.distinct_id),
        "kind": one.kind,
        "repaired": repaired,
        "old": {"person_id": str(old)} if old else None,
        "clickhouse": _row(one.seen) if one.seen else None,
        "postgres": {"person_id": str(one.truth.person_id), "version": one.truth.version} if one.truth else None,
        "action": _action(one) if touched else "left alone",
        "written": _row(row_of(one)) if touched else None,
    }


def _action(one: Difference) -> str:
    done = "inserted" if one.truth else "tombstoned"
    return f"{done}, and what stood above or against it removed" if has_to_go(one) else done


def _row(row: Seen) -> dict[str, Any]:
    return {"person_id": str(row.person_id), "is_deleted": row.is_deleted, "version": row.version}


def readable(distinct_id: bytes) -> str:
    """The id as it is, or as Postgres writes bytes (`\\x00ff`) if it is not text or could be taken for such bytes."""
    text = text_of(distinct_id)
    return f"\\x{distinct_id.hex()}" if text is None or text.startswith("\\x") else text


def as_bytes(readable_id: str) -> bytes:
    """The id that `readable` gave."""
    return bytes.fromhex(readable_id[2:]) if readable_id.startswith("\\x") else readable_id.encode()
