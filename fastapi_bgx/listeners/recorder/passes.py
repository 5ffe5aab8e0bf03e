"""How somebody waits for what a thread does again and again: for one pass that begins after now."""

import threading
from collections.abc import Callable


class Passes:
    """Counts the passes of one thread; others wait for them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._begun = 0
        self._ended = 0
        self._hurried = False

    @property
    def under_way(self) -> bool:
        """True while there is one."""
        return self._begun != self._ended

    def begin(self) -> None:
        """One begins."""
        with self._changed:
            self._begun += 1
            self._hurried = False

    def end(self) -> None:
        """It has ended."""
        with self._changed:
            self._ended = self._begun
            self._changed.notify_all()

    def wait_for_hurry(self, timeout: float) -> None:
        """Until somebody waits for the next one, or for so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._hurried, timeout)

    def wait_for_next(self, timeout: float, nudge: Callable[[], object]) -> bool:
        """Until one has ended that began after now; false when that takes longer.

        `nudge` is called to have it begin.
        """
        with self._changed:
            wanted = self._begun + 1
            self._hurried = True
            self._changed.notify_all()
        nudge()
        with self._changed:
            return self._changed.wait_for(lambda: self._ended >= wanted, max(0.0, timeout))
