"""The parameters of a run: one definition for Airflow's form and for our own validation.

Airflow's UI clamps a number that is out of range and accepts any unknown key, so a run validates what it
was really given.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import jsonschema

from pdi2.core.failures import MigrationError

MEBIBYTE = 1024 * 1024

SCOPE, COPY, SWITCH = "1. Scope", "2. Dual writes and copy", "3. Switch"
"""The groups of Airflow's form, in order."""

SCHEMA: dict[str, dict[str, Any]] = {
    "team_ids": {
        "default": None,
        "type": ["null", "array"],
        "items": {"type": "integer"},
        "minItems": 1,
        "section": SCOPE,
        "title": "Only these teams",
        "description": "A trial: copies and verifies these teams, as a list such as [2, 17], and never switches reads. "
        "Empty: all teams.",
    },
    "dry_run": {
        "default": False,
        "type": "boolean",
        "section": SCOPE,
        "title": "Dry run",
        "description": "Checks and plans (teams, rows, slices, time, memory, disk), and writes nothing anywhere.",
    },
    "settle_seconds": {
        "default": 120,
        "type": "integer",
        "minimum": 0,
        "maximum": 86_400,
        "section": COPY,
        "title": "Settle time (s)",
        "description": "How long dual writes are watched, without a miss, before anything is copied. "
        "0: waits for nothing, still checks.",
    },
    "in_flight_seconds": {
        "default": None,
        "type": ["null", "number"],
        "minimum": 0,
        "maximum": 3_600,
        "section": COPY,
        "title": "Replication lag allowance (s)",
        "description": "How long a row may take from Postgres to ClickHouse. A difference that is older is wrong, "
        "and is repaired. Empty: a quarter of the settle time.",
    },
    "max_memory_usage": {
        "default": 200_000_000,
        "type": "integer",
        "minimum": 50 * MEBIBYTE,
        "maximum": 64 * 1024 * MEBIBYTE,
        "section": COPY,
        "title": "Memory limit per ClickHouse statement (bytes)",
        "description": "No statement of the migration uses more, and slices are sized by it. 200000000 is 200 MB; "
        "from 50 MiB to 64 GiB. How many copies run at once is the number of slots of the pool pdi2_copies.",
    },
    "require_approval": {
        "default": False,
        "type": "boolean",
        "section": SWITCH,
        "title": "Require approval",
        "description": "Before reads are switched a person is shown what was compared, and approves or rejects.",
    },
    "read_cache_seconds": {
        "default": 900,
        "type": "integer",
        "minimum": 0,
        "maximum": 86_400,
        "section": SWITCH,
        "title": "Reader cache lifetime (s)",
        "description": "How long a reader may still use the old table after the switch. Old writes go on for that "
        "long. PostHog remembers its switch for up to 15 minutes (900).",
    },
    "stop_old_writes": {
        "default": True,
        "type": "boolean",
        "section": SWITCH,
        "title": "Stop old writes",
        "description": "Off: both tables stay written after the switch, so that a rollback stays possible. "
        "A later run with this on stops them.",
    },
}


AUDIT_SCHEMA: dict[str, dict[str, Any]] = {
    "repair": {
        "default": False,
        "type": "boolean",
        "title": "Repair",
        "description": "Writes what Postgres says into the new table where it drifted. Off: only reports, and fails.",
    },
    "team_ids": {**SCHEMA["team_ids"], "description": "Compares these teams only. Empty: all teams."},
    "in_flight_seconds": {
        **SCHEMA["in_flight_seconds"],
        "default": 30,
        "description": "Seconds that a row may take from Postgres to ClickHouse. A difference that is older is drift.",
    },
    "max_memory_usage": {**SCHEMA["max_memory_usage"], "description": "Bytes that one statement of the audit may use."},
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
    in_flight_seconds: float | None = None
    read_cache_seconds: int = SCHEMA["read_cache_seconds"]["default"]
    stop_old_writes: bool = True
    require_approval: bool = False
    repair: bool = True

    @classmethod
    def validated(
        cls,
        params: Mapping[str, Any],
        conf: Mapping[str, Any] | None = None,
        known: Mapping[str, Mapping[str, Any]] = SCHEMA,
    ) -> "Settings":
        """Raises SettingsError with every problem; `conf` is what the run was triggered with."""
        given = {**params, **(conf or {})}
        problems = [
            f"Unknown parameter {key!r}: the parameters are {', '.join(known)}. Trigger the run again without it."
            for key in sorted(set(given) - set(known))
        ]
        for name, schema in known.items():
            if name in given:
                problems += [
                    f"Parameter {name} is {given[name]!r}: {error.message}. Give a value in range."
                    for error in jsonschema.Draft202012Validator(schema).iter_errors(given[name])
                ]
        if problems:
            raise SettingsError(problems)
        chosen = {field.name: given[field.name] for field in fields(cls) if field.name in given}
        if chosen.get("team_ids") is not None:
            chosen["team_ids"] = tuple(sorted(set(chosen["team_ids"])))
        return cls(**chosen)

    @property
    def in_flight(self) -> float:
        """How many seconds a row may take to reach ClickHouse after its commit in Postgres."""
        return self.settle_seconds / 4 if self.in_flight_seconds is None else self.in_flight_seconds

    @property
    def proof_limit_seconds(self) -> int:
        """How long the proof of the dual write may take: caches of the switch must run out within it."""
        return math.ceil(3 * self.settle_seconds + self.read_cache_seconds + (self.in_flight_seconds or 0))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
