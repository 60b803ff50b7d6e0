"""What people read about a run: the report, the certificate, and everything that the page shows.

Reads the ledger, and writes only how a run ended.
"""
