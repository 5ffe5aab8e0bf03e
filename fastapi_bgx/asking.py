"""Questions to what may hang: each in a thread, a few at a time, and none for longer than a bound.

A thread cannot be stopped: one that hangs stays taken. So there is a bound to them, for all event
loops together, and while every one of them hangs, a further question is refused at once.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import anyio

from fastapi_bgx.backends import Backend, current_backend
from fastapi_bgx.errors import StoreUnavailable
from fastapi_bgx.threads import Mailbox, Threads

T = TypeVar("T")


class Asking:
    """Asks at most `threads` questions at once, and waits at most `seconds` for each answer.

    From any event loop. The first who asks is the first who is answered.
    """

    def __init__(self, threads: int, seconds: float) -> None:
        self._most = threads
        self._seconds = seconds
        self._threads = Threads()
        self._lock = threading.Lock()
        self._running: set[_Question[Any]] = set()
        self._waiting: deque[_Question[Any]] = deque()

    async def ask(self, question: Callable[[], T]) -> T:
        """What `question()` gives.

        Raises:
            ValueError: it raised just that: what was asked is wrong.
            StoreUnavailable: it raised anything else, or took too long, or all threads hang.
        """
        asked = _Question(question, current_backend())
        self._enter(asked)
        try:
            with anyio.move_on_after(self._seconds):
                await asked.wait()
                return asked.answer()
        finally:
            self._withdraw(asked)
        raise StoreUnavailable(f"it took longer than {self._seconds:g} s")

    def _enter(self, asked: "_Question[Any]") -> None:
        with self._lock:
            if len(self._running) < self._most:
                self._begin(asked)
            elif self._all_hang():
                raise StoreUnavailable(
                    f"{self._most} earlier questions hang for more than {self._seconds:g} s"
                )
            else:
                self._waiting.append(asked)

    def _begin(self, asked: "_Question[Any]") -> None:
        asked.begun_at = time.monotonic()
        try:
            self._threads.submit(asked.run, partial(self._ended, asked))
        except RuntimeError as error:
            raise StoreUnavailable("the system has no more threads to ask it in") from error
        self._running.add(asked)

    def _all_hang(self) -> bool:
        long_ago = time.monotonic() - self._seconds
        return all(asked.begun_at < long_ago for asked in self._running)

    def _ended(self, asked: "_Question[Any]") -> None:
        asked.report()  # first: whether another one can begin is nothing to it
        with self._lock:
            self._running.discard(asked)
            if self._waiting:
                self._begin(self._waiting.popleft())  # in this very thread, which is idle now

    def _withdraw(self, asked: "_Question[Any]") -> None:
        with self._lock:
            if asked in self._waiting:
                self._waiting.remove(asked)


class _Question(Generic[T]):
    """One question, and its answer."""

    def __init__(self, call: Callable[[], T], backend: Backend) -> None:
        self._call = call
        self._waiter = backend.waiter()
        self._mailbox = Mailbox(backend)
        self._answer: Callable[[], T] = call
        self.begun_at = 0.0

    def run(self) -> None:
        """Find the answer, in a thread; never raises."""
        try:
            value = self._call()
        except BaseException as error:
            self._answer = partial(_refuse, error)
        else:
            self._answer = lambda: value

    def report(self) -> None:
        """Tell who waits that there is an answer; from the thread."""
        self._mailbox.post(self._waiter.set)

    async def wait(self) -> None:
        """Wait until there is one."""
        await self._waiter.wait()

    def answer(self) -> T:
        """The answer, once there is one."""
        return self._answer()


def _refuse(error: BaseException) -> Any:
    # Not its subclasses: a row that cannot be read or decoded is not the mistake of who asks.
    if isinstance(error, StoreUnavailable) or type(error) is ValueError:
        raise error
    # Its own text may hold what was asked, or where: that is for the log, not for an answer.
    raise StoreUnavailable(type(error).__name__) from error
