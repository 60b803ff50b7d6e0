"""Compares the new table with Postgres, which is the truth: whole teams, or what changed since. Records the findings.

Repairs the new table, and touches nothing else.
"""
