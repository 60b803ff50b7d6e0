"""Runs named statements on ClickHouse and Postgres, with complete answers, and says what a failure means.

Nothing here knows the migration's steps or its ledger.
"""
