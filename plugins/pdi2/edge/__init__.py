"""Where the migration touches Airflow: connections, task functions, retries."""

POOL = "pdi2_copies"
"""Airflow's pool of the copies: its slots are how many run at once."""
VERDICT = "verdict"
"""The key of what preflight found is left to do, an XCom."""
END = "end"
"""The task that a run reaches unless a task before it failed."""
