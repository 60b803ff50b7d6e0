"""What the migration and the application know: the ledger, the switches, a run's parameters, and how work is cut.

Every other room reads it. What is written to Postgres is written here.
"""
