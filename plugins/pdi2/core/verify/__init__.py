"""The new table against Postgres, the truth: teams in, or what changed since; findings in the ledger out.

Repairs the new table, and touches nothing else.
"""
