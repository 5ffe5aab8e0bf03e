"""One small adapter for each event loop; the runner knows only the protocol in `base`."""

import asyncio

from fastapi_bgx.backends._asyncio import AsyncioBackend
from fastapi_bgx.backends.base import Backend, Handle, Interrupt, Observer, Waiter, is_cancellation

__all__ = [
    "Backend",
    "Handle",
    "Interrupt",
    "Observer",
    "Waiter",
    "current_backend",
    "current_token",
    "is_cancellation",
]


def current_token() -> object:
    """What identifies the event loop that runs in this thread.

    Raises:
        RuntimeError: no event loop runs here.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return _trio_token()


def current_backend() -> Backend:
    """The adapter for the event loop that runs in this thread.

    Raises:
        RuntimeError: no event loop runs here.
    """
    try:
        return AsyncioBackend(asyncio.get_running_loop())
    except RuntimeError:
        _trio_token()
    from fastapi_bgx.backends._trio import TrioBackend  # trio runs, so it is installed

    return TrioBackend()


def _trio_token() -> object:
    import sys

    trio = sys.modules.get("trio")
    if trio is None:
        raise RuntimeError("no event loop runs in this thread")
    return trio.lowlevel.current_trio_token()
