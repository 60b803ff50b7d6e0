"""Where the migration touches Airflow: connections, task functions, retries."""

POOL = "pdi2_copies"
"""Airflow's pool for the copies: as many run at once as it has slots."""
VERDICT = "verdict"
"""The key of the XCom in which preflight says what is left to do."""
END = "end"
"""The last task, which a run reaches unless an earlier task failed."""
