"""ClickHouse and Postgres as the migration speaks to them: named statements in, whole answers out.

And what a failure means. Nothing here knows of the migration.
"""
