"""The migration itself. Nothing here imports Airflow."""
