"""The state of the migration and of the application: the ledger, who may go on with it, the switches, a run's
parameters, and how work is cut.

Every room above reads it. Everything that is written to Postgres is written here.
"""
