"""Copies a team's ids from the old table to the new one, and records finished slices in the ledger.

Writes the copies, whose versions are below everything the application writes, and helper tables, which it drops.
"""
