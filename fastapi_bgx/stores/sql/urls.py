"""Which databases there are, and what a URL means: decided before anything connects."""

from importlib.util import find_spec

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

SQLITE = frozenset({"sqlite", "sqlite+pysqlite"})
POSTGRESQL = frozenset({"postgresql", "postgres", "postgresql+psycopg"})


def url_of(text: str) -> URL:
    """The URL of a database that records can be kept in, with its driver.

    Raises:
        ValueError: it is none, or one of another database, another driver or no file.
        ImportError: its driver is not installed.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # the message must not repeat what may hold a password
        raise ValueError(
            "the URL of the records cannot be read; it looks like sqlite:///tasks.db or "
            "postgresql://user:password@host/database"
        ) from None
    if url.drivername in SQLITE:
        return _sqlite(url)
    if url.drivername in POSTGRESQL:
        return _postgresql(url)
    raise ValueError(
        f"records are kept in SQLite or PostgreSQL, not with {url.drivername}; "
        f"the URL begins with sqlite:/// or postgresql+psycopg://"
    )


def _sqlite(url: URL) -> URL:
    file = url.database or ""
    if file in {"", ":memory:"} or file.startswith("file:"):
        raise ValueError(
            "SQLite needs a file, as in sqlite:///tasks.db: "
            "without one, each connection would see a database of its own"
        )
    return url


def _postgresql(url: URL) -> URL:
    if find_spec("psycopg") is None:
        raise ImportError("records in PostgreSQL need psycopg: pip install 'psycopg[binary]'")
    return url.set(drivername="postgresql+psycopg")
