"""The parameters of a run: one definition for Airflow's form and for our own validation.

Airflow's UI clamps a number that is out of range and accepts any unknown key, so a run validates what it
was really given.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import jsonschema

from pdi2.core.failures import MigrationError

MEBIBYTE = 1024 * 1024

SCHEMA: dict[str, dict[str, Any]] = {
    "team_ids": {
        "default": None,
        "type": ["null", "array"],
        "items": {"type": "integer"},
        "minItems": 1,
        "title": "Only these teams",
        "description": "A trial: copies and verifies these teams, and never switches reads. Empty: all teams.",
    },
    "dry_run": {
        "default": False,
        "type": "boolean",
        "title": "Dry run",
        "description": "Checks and plans, and writes nothing anywhere.",
    },
    "max_memory_usage": {
        "default": 200_000_000,
        "type": "integer",
        "minimum": 50 * MEBIBYTE,
        "maximum": 64 * 1024 * MEBIBYTE,
        "title": "Memory of a ClickHouse query",
        "description": "Bytes that one statement of the migration may use. Slices are sized by it.",
    },
    "settle_seconds": {
        "default": 120,
        "type": "integer",
        "minimum": 0,
        "maximum": 86_400,
        "title": "Settle time",
        "description": "Seconds for which dual writes are watched, without a miss, before anything is copied. "
        "A quarter of it is the allowance for rows in flight. 0: waits for nothing, still checks.",
    },
    "read_cache_seconds": {
        "default": 900,
        "type": "integer",
        "minimum": 0,
        "maximum": 86_400,
        "title": "Read cache",
        "description": "Seconds for which a reader may still use the old table after the switch. "
        "Old writes go on for that long.",
    },
    "stop_old_writes": {
        "default": True,
        "type": "boolean",
        "title": "Stop old writes",
        "description": "Off: both tables stay written after the switch, so that a rollback stays possible.",
    },
    "require_approval": {
        "default": False,
        "type": "boolean",
        "title": "Require approval",
        "description": "Wait for a person's approval of the certificate before reads are switched.",
    },
}


class SettingsError(MigrationError):
    """A parameter is unknown or out of range."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Settings:
    """Validated parameters; sizes in bytes, times in seconds."""

    team_ids: tuple[int, ...] | None = None
    dry_run: bool = False
    max_memory_usage: int = SCHEMA["max_memory_usage"]["default"]
    settle_seconds: int = SCHEMA["settle_seconds"]["default"]
    read_cache_seconds: int = SCHEMA["read_cache_seconds"]["default"]
    stop_old_writes: bool = True
    require_approval: bool = False

    @classmethod
    def validated(cls, params: Mapping[str, Any], conf: Mapping[str, Any] | None = None) -> "Settings":
        """Raises SettingsError with every problem; `conf` is what the run was triggered with."""
        given = {**params, **(conf or {})}
        problems = [
            f"Unknown parameter {key!r}: the parameters are {', '.join(SCHEMA)}. Trigger the run again without it."
            for key in sorted(set(given) - set(SCHEMA))
        ]
        for name, schema in SCHEMA.items():
            if name in given:
                problems += [
                    f"Parameter {name} is {given[name]!r}: {error.message}. Give a value in range."
                    for error in jsonschema.Draft202012Validator(schema).iter_errors(given[name])
                ]
        if problems:
            raise SettingsError(problems)
        known = {field.name: given[field.name] for field in fields(cls) if field.name in given}
        if known.get("team_ids") is not None:
            known["team_ids"] = tuple(sorted(set(known["team_ids"])))
        return cls(**known)

    @property
    def in_flight_seconds(self) -> float:
        """How long a row may take to reach ClickHouse after its commit in Postgres."""
        return self.settle_seconds / 4

    @property
    def proof_limit_seconds(self) -> int:
        """How long the proof of the dual write may take: caches of the switch must run out within it."""
        return 3 * self.settle_seconds + self.read_cache_seconds

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
