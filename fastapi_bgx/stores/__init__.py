"""Where records are kept: the protocol (`base`) and its adapters."""

from importlib import import_module

from fastapi_bgx.stores.base import Store
from fastapi_bgx.stores.memory import MemoryStore

__all__ = ["MemoryStore", "Store", "open_store"]
MEMORY = "memory"
"""In place of a URL: the store of this process alone."""


def open_store(url: str) -> Store:
    """The store for `memory`, or for the URL of a database; it does not connect yet.

    Raises:
        ValueError: that is no URL of a database that can be used. The message does not show it:
            it may hold a password.
        ImportError: a package that it needs is missing; the message says which extra to install.
    """
    if url == MEMORY:
        return MemoryStore()
    adapter = import_module("fastapi_bgx.stores.sql")  # with packages that few have installed
    try:
        store: Store = adapter.SqlStore(url)
    except ImportError:
        raise
    except Exception as error:
        why = str(error) if type(error) is ValueError else type(error).__qualname__
        raise ValueError(f"no URL of a database that can be used: {_unquoted(why, url)}") from None
    return store


def _unquoted(why: str, url: str) -> str:
    """What went wrong, without the URL: some versions of SQLAlchemy quote it."""
    return why.replace(url, "(the URL)")
