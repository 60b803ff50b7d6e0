"""Airflow's plugin manager looks here. The package beside it is not executed file by file: see .airflowignore."""
