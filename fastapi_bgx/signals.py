"""Noticing the server's signals: a drain has to begin before the server asks for it.

uvicorn waits for the tasks of requests before it ends the lifespan, for ever by default. So the
grace period begins with the signal itself. The server's own handler is called first, always.
"""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

WATCHED = (signal.SIGTERM, signal.SIGINT)
SAME_STOP_SECONDS = 1.0
"""A SIGTERM that follows another signal this soon asks for the same stop.

A process manager signals the whole group, and uvicorn's parent then passes its own signal on.
"""


class SignalWatch:
    """Calls back, on whatever thread Python runs signal handlers, for SIGTERM and SIGINT.

    `noticed(False)` for the first signal, `noticed(True)` for those that want it to be quick.
    """

    def __init__(self, noticed: Callable[[bool], None]) -> None:
        self._noticed = noticed
        self._watching = False
        self._first: float | None = None
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def start(self) -> None:
        """Chain to the handlers of the server. Without one there is nobody to drain for."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._watching = True
        for number in WATCHED:
            handler = signal.getsignal(number)
            if callable(handler) and handler is not signal.default_int_handler:
                self._before[number] = handler
                signal.signal(number, self._handle)

    def stop(self) -> None:
        """Notice nothing any more, and put the handlers back.

        Where somebody has chained to ours since, it stays and only passes the signal on.
        """
        self._watching = False
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        try:
            self._before[number](number, frame)
        finally:
            if self._watching:
                self._notice(number)

    def _notice(self, number: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            self._noticed(False)
        elif number == signal.SIGINT or now - self._first >= SAME_STOP_SECONDS:
            self._noticed(True)
