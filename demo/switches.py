"""What one process of the application believes about its two switches."""

import json
import time

import psycopg

from demo.schema import MIGRATION, Table

WRITES = "constance:posthog:PERSON_DISTINCT_ID_WRITES"
READS = "constance:posthog:PERSON_DISTINCT_ID_READS"

_COMPLETED = 2
_TABLES = {
    "old": frozenset({Table.OLD}),
    "both": frozenset(Table),
    "new": frozenset({Table.NEW}),
}


class Switches:
    """The switches as they were up to `cache_seconds` ago.

    If there are no instance settings (PostHog 1.32, 1.33), a process asks only once which tables to write, as PostHog's
    plugin server does at its first write. Once reads have moved to the new table, they stay there for the life of the
    object, as in PostHog: a rollback reaches a process only when it restarts. With cache_seconds = math.inf, a process
    never hears of a change.
    """

    def __init__(self, postgres: psycopg.Connection, cache_seconds: float = 60.0) -> None:
        """`postgres` must be in autocommit mode."""
        self.postgres = postgres
        self._cache_seconds = cache_seconds
        self._expires = -1.0
        self._writes: frozenset[Table] = frozenset()
        self._reads = Table.OLD

    def writes(self) -> frozenset[Table]:
        """The tables that a change is sent to."""
        self._refresh()
        return self._writes

    def reads(self) -> Table:
        """The table that answers which person an id belongs to."""
        self._refresh()
        return self._reads

    def _refresh(self) -> None:
        now = time.monotonic()
        if now < self._expires:
            return
        settings, completed = self._settings(), self._completed()
        if WRITES in settings:
            self._writes = _TABLES[settings[WRITES]]
        elif not self._writes:
            self._writes = _TABLES["new" if completed else "both"]
        if completed or settings.get(READS) == "new":
            self._reads = Table.NEW
        self._expires = now + self._cache_seconds

    def _completed(self) -> bool:
        query = "SELECT 1 FROM posthog_asyncmigration WHERE name = %s AND status = %s"
        return self.postgres.execute(query, [MIGRATION, _COMPLETED]).fetchone() is not None

    def _settings(self) -> dict[str, str]:
        # Older releases keep their settings elsewhere.
        if self.postgres.execute("SELECT to_regclass('posthog_instancesetting')").fetchone() == (None,):
            return {}
        query = "SELECT key, raw_value FROM posthog_instancesetting WHERE key IN (%s, %s)"
        return {key: json.loads(value) for key, value in self.postgres.execute(query, [WRITES, READS])}


def set_switch(postgres: psycopg.Connection, key: str, value: str) -> None:
    """Set WRITES or READS as an administrator would."""
    postgres.execute("UPDATE posthog_instancesetting SET raw_value = %s WHERE key = %s", [json.dumps(value), key])
