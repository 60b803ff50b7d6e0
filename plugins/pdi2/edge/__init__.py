"""Where the migration touches Airflow: connections, task functions, retries."""
