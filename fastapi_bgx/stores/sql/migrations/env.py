"""What Alembic runs for each migration: on the connection, and in the transaction, it was given."""

from alembic import context

from fastapi_bgx.stores.sql.tables import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
