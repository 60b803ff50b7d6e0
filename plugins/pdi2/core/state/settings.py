"""The parameters of a run, defined once for both Airflow's form and our own validation.

Airflow's UI clamps a number that is out of range and accepts any unknown key, so a run validates what it was really
given.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jsonschema

from pdi2.core.engines.failures import MigrationError

MEBIBYTE = 1024 * 1024

FOLDED = "Times and memory"
"""A section of Airflow's form, collapsed until it is opened. Parameters without a section are shown above it."""

_LIST = r"[0-9]{1,18}(\s*,\s*[0-9]{1,18})*"
NUMBERS = {
    "type": "string",
    "pattern": rf"^\s*({_LIST}|\[\s*{_LIST}\s*\])\s*$",
    "description": "numbers of teams, with commas between them: 2, 17",
}
TEAM_IDS: dict[str, Any] = {
    "default": None,
    # No "type" here: with "array" or several types, Airflow's form shows an editor that rewrites what one types
    # (FieldAdvancedArray, FieldMultiType of 3.3). Without a "type" it shows a plain text field.
    "anyOf": [
        {"type": "null"},
        NUMBERS,
        {"type": "array", "minItems": 1, "items": {"anyOf": [{"type": "integer"}, NUMBERS]}},
    ],
    "title": "Only these teams",
}

SCHEMA: dict[str, dict[str, Any]] = {
    "team_ids": {
        **TEAM_IDS,
        "description": "A trial: copies and verifies these teams, such as 2, 17, and never switches reads. "
        "Empty: all teams.",
    },
    "dry_run": {
        "default": False,
        "type": "boolean",
        "title": "Dry run",
        "description": "Checks and plans (teams, rows, slices, time, memory, disk), and writes nothing anywhere.",
    },
    "require_approval": {
        "default": False,
        "type": "boolean",
        "title": "Require approval",
        "description": "Before reads are switched a person is shown what was compared, and approves or rejects.",
    },
    "stop_old_writes": {
        "default": True,
        "type": "boolean",
        "title": "Stop old writes",
        "description": "Ends the writes to the old table after the switch, and with them the way back. Off: both "
        "tables stay written, so that a rollback stays possible; a later run with this on stops them.",
    },
    "settle_seconds": {
        "default": 120,
        "type": "integer",
        "minimum": 0,
        "maximum": 86_400,
        "section": FOLDED,
        "title": "Settle time (s)",
        "description": "How long dual writes are watched, without a miss, before anything is copied. "
        "0: does not wait, but still checks.",
    },
    "in_flight_seconds": {
        "default": None,
        "type": ["null", "number"],
        "minimum": 0,
        "maximum": 3_600,
        "section": FOLDED,
        "title": "Replication lag allowance (s)",
        "description": "How long a row may take from Postgres to ClickHouse. A difference that is older is wrong, "
        "and is repaired. Empty: a quarter of the settle time.",
    },
    "max_memory_usage": {
        "default": 200_000_000,
        "type": "integer",
        "minimum": 50 * MEBIBYTE,
        "maximum": 64 * 1024 * MEBIBYTE,
        "section": FOLDED,
        "title": "Memory limit per ClickHouse statement (bytes)",
        "description": "The limit of each statement that reads or writes rows. Slices are sized by it. 200000000 is "
        "200 MB; from 50 MiB to 64 GiB. How many copies run at once is the number of slots of the pool pdi2_copies.",
    },
    "read_cache_seconds": {
        "default": 900,
        "type": "integer",
        "minimum": 0,
        "maximum": 86_400,
        "section": FOLDED,
        "title": "Reader cache lifetime (s)",
        "description": "How long a reader may still use the old table after the switch. Old writes go on for that "
        "long, and a rollback stays possible. PostHog looks again within a minute (60). PostHog 1.32 and 1.33 end old "
        "writes by themselves, and nothing is waited for.",
    },
}


AUDIT_SCHEMA: dict[str, dict[str, Any]] = {
    "repair": {
        "default": False,
        "type": "boolean",
        "title": "Repair",
        "description": "Writes what Postgres says into the new table where it drifted. Off: only reports, and fails.",
    },
    "team_ids": {**TEAM_IDS, "description": "Compares these teams only, such as 2, 17. Empty: all teams."},
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
        """The validated settings. `conf` is what the run was triggered with. Raises SettingsError with all problems."""
        given = {**params, **(conf or {})}
        problems = [
            f'Unknown parameter "{key}": the parameters are {", ".join(known)}. Trigger the run again without it.'
            for key in sorted(set(given) - set(known))
        ]
        for name, schema in known.items():
            if name in given:
                problems += _problems(name, schema, given[name])
        if problems:
            raise SettingsError(problems)
        return cls(**{field.name: _read(field.name, given[field.name]) for field in fields(cls) if field.name in given})

    @property
    def in_flight(self) -> float:
        """How many seconds a row may take to reach ClickHouse after its commit in Postgres."""
        return self.settle_seconds / 4 if self.in_flight_seconds is None else self.in_flight_seconds

    @property
    def proof_limit_seconds(self) -> int:
        """How long the proof of the dual write may take: long enough for caches of the switch to run out."""
        return math.ceil(3 * self.settle_seconds + self.read_cache_seconds + (self.in_flight_seconds or 0))

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "Settings":
        """The settings as the ledger keeps them."""
        return cls(**{**kept, "team_ids": None if kept["team_ids"] is None else tuple(kept["team_ids"])})


def _problems(name: str, schema: Mapping[str, Any], value: Any) -> list[str]:
    is_nan = isinstance(value, float) and math.isnan(value)  # JSON Schema accepts NaN in any range
    if not is_nan and jsonschema.Draft202012Validator(schema).is_valid(value):
        return []
    given = json.dumps(value, ensure_ascii=False, default=str)
    if name == "team_ids":
        return [
            f"Parameter team_ids is {given}, which is not a list of teams. Give numbers with commas between them, "
            "such as 2, 17, or as a list, [2, 17]; leave it empty for all teams."
        ]
    return [f"Parameter {name} cannot be {given}. Give {_range(schema)}."]


def _range(schema: Mapping[str, Any]) -> str:
    """The values that a parameter may have, in words."""
    if schema["type"] == "boolean":
        return "true or false"
    kind = "a whole number" if schema["type"] == "integer" else "a number"
    return f"{kind} from {schema['minimum']:,} to {schema['maximum']:,}" + (", or nothing" * ("null" in schema["type"]))


def _read(name: str, value: Any) -> Any:
    """Converts a valid value to what Settings holds. JSON has one kind of number, so 2.0 is the integer 2."""
    if name == "team_ids" and value is not None:
        given = [value] if isinstance(value, str) else value
        numbers = [re.findall("[0-9]+", one) if isinstance(one, str) else [one] for one in given]
        return tuple(sorted({int(number) for one in numbers for number in one}))
    if name != "in_flight_seconds" and isinstance(value, float):
        return int(value)
    return value
