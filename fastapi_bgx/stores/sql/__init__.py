"""Records in a database: `SqlStore`. The one package that imports SQLAlchemy and Alembic.

`tables` says what is kept, `migrations` how it came to be, `rows` what a record becomes there,
`selects` and `changing` are the SQL, `database` connects.
"""

try:
    import alembic as alembic
    import sqlalchemy as sqlalchemy
except ImportError as _missing:
    raise ImportError(
        "records in a database need SQLAlchemy and Alembic: pip install 'fastapi-bgx[sql]'"
    ) from _missing

from fastapi_bgx.stores.sql.store import SqlStore

__all__ = ["SqlStore"]
