"""What people read of a run: the report, the certificate, and all that the page shows.

Reads the ledger, and writes no more than how a run ended.
"""
