"""A team's ids from the old table to the new one: a team of the ledger in, finished slices in the ledger out.

Writes copies, whose versions are below whatever the application writes, and tables of its own, which it drops.
"""
