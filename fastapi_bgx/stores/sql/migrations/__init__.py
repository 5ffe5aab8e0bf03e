"""The revisions of the tables, for Alembic, in their order: `versions/`.

Processes of the version before run beside those of this one while it is deployed. So a revision
only adds: tables, indexes, and columns that may be empty or have a default.
"""
