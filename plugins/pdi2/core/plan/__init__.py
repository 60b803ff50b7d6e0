"""What must be so before a migration may begin, and which teams there are.

A list of problems comes out, or teams in the ledger. The tables are only read.
"""
