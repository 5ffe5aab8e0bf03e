"""Threads of our own: sync tasks never take one of the 40 that serve sync routes and files.

They are daemons, so that a function that never returns cannot keep the process from ending, and
they go away when they have been idle for a while. How many run at once is not decided here but by
the limiter in front.
"""

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable

from fastapi_bgx.backends import Backend

IDLE_SECONDS = 10.0


def nothing() -> None:
    """What there is to report of a call that nobody waits for."""


class Threads:
    """A pool that starts a thread whenever none is idle."""

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self._work: queue.SimpleQueue[tuple[Callable[[], None], Callable[[], None]]] = (
            queue.SimpleQueue()
        )
        self._idle_seconds = idle_seconds
        self._idle = 0
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)

    def submit(self, call: Callable[[], None], report: Callable[[], None] = nothing) -> None:
        """Run `call` in a thread, then `report`. Neither may raise.

        When `report` is called, the thread counts as idle already: what is submitted in answer to
        it needs no other thread, and no thread has to be woken for it.

        Raises:
            RuntimeError: the system has no more threads; `call` will not run.
        """
        with self._lock:
            start = self._idle == 0
            if not start:
                self._idle -= 1
        if start:
            name = f"bgx-thread-{next(self._numbers)}"
            threading.Thread(target=self._run, name=name, daemon=True).start()
        self._work.put((call, report))

    def _run(self) -> None:
        while True:
            try:
                call, report = self._work.get(timeout=self._idle_seconds)
            except queue.Empty:
                if self._retire():
                    return
                continue
            call()
            with self._lock:
                self._idle += 1
            report()
            del call, report  # an idle thread keeps nothing of the last task alive

    def _retire(self) -> bool:
        """End, unless a call was promised to this thread at the last moment."""
        with self._lock:
            if self._work.empty() and self._idle:
                self._idle -= 1
                return True
            return False


class Mailbox:
    """Brings callbacks from threads to the event loop, with one wake-up for many of them."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._letters: deque[Callable[[], None]] = deque()
        self._woken = False

    def post(self, callback: Callable[[], None]) -> None:
        """Have `callback` called on the loop's thread; from any thread. Lost if the loop ended."""
        self._letters.append(callback)
        if not self._woken:
            self._woken = True
            try:
                self._backend.call_soon_threadsafe(self._open)
            except RuntimeError:  # the loop has ended: nobody is left to tell
                self._letters.clear()

    def _open(self) -> None:
        self._woken = False  # before the letters are read: a later one rings again
        while self._letters:
            self._letters.popleft()()
