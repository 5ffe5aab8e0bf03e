"""Making the tables as this version needs them, by Alembic, in a transaction of the caller."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from fastapi_bgx.errors import StoreUnavailable
from fastapi_bgx.stores.sql.tables import VERSION_TABLE

SCRIPTS = Path(__file__).parent / "migrations"
LOCK = 0x6267782D73746F72
"""A number that nothing but this library locks in a database."""


def is_current(connection: Connection, scripts: Path = SCRIPTS) -> bool:
    """True when there is nothing to do.

    Raises:
        StoreUnavailable: the tables are those of a newer version.
    """
    revisions = ScriptDirectory.from_config(_config(scripts))
    known = {script.revision for script in revisions.walk_revisions()}
    version = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    heads = set(version.get_current_heads())
    if heads - known:
        raise StoreUnavailable(
            f"its tables have revision {', '.join(sorted(heads))}, which this version of "
            f"fastapi-bgx does not know: a newer one made them, so upgrade this one too"
        )
    return heads == set(revisions.get_heads())


def migrate(connection: Connection, scripts: Path = SCRIPTS) -> None:
    """Bring the tables up to date, after whoever does the same at this moment.

    Raises:
        StoreUnavailable: the tables are those of a newer version.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        connection.execute(text("SET LOCAL statement_timeout = 0"))  # an index may take its time
    if not is_current(connection, scripts):
        config = _config(scripts)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _config(scripts: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    return config
