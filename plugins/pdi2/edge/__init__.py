"""Where the migration touches Airflow: connections, task functions, retries."""

POOL = "pdi2_copies"
"""Airflow's pool of the copies: its slots are how many run at once."""
