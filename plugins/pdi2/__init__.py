"""Move PostHog's person_distinct_id to person_distinct_id2: live, team by team, proven against Postgres."""

__version__ = "0.1.0"
