"""Checks what must hold before a migration may begin, and plans the teams.

The result is a list of problems, or teams in the ledger. The tables are only read.
"""
